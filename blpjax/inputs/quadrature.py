"""Deterministic rules for expectations over standard normal variables: nodes and weights.

Univariate rules are Gauss-Hermite and its nested extension, multivariate ones are tensor products and sparse grids.
Every univariate rule of level L integrates polynomials of degree 2 L - 1 exactly.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from blpjax.machine.memory import require_memory

Array = npt.NDArray[np.float64]

# Level of the largest univariate rule: the nested extensions below end there, and PyBLP's rules do, too.
MAXIMUM_LEVEL = 25

# Non-negative nodes of the nested rule in the order in which they are added (Genz and Keister, 1996). The 9, 19 and 35
# point rules are Patterson extensions: the polynomial p with the 6, 10 and 16 new nodes as roots is the one for which
# E[q(x) p(x) x^k] = 0 for all k below its degree, where q has the older nodes as roots.
_NESTED_NODES = (
    0.0,
    1.7320508075688772935,
    0.7410953499945408418618,
    4.184956017672731860689,
    2.861279576057058117331,
    1.230423634027306007751,
    2.596083115049202159358,
    5.187016039913656065992,
    6.363394494336369987633,
    3.205333794499194518718,
    0.2489922975799606118066,
    2.23362606167694165201,
    3.635318519037278245219,
    7.122106700804616658219,
    7.98077179859056088018,
    9.01693978989030251746,
    5.69817776848810958933,
    4.736433085952297084099,
)

# (highest level, number of points): the smallest nested set of nodes that reaches the degree of the level.
_NESTED_SIZES = ((1, 1), (3, 3), (4, 7), (8, 9), (9, 17), (15, 19), (16, 31), (17, 33), (MAXIMUM_LEVEL, 35))


@dataclass(frozen=True, eq=False)
class NodesAndWeights:
    """Nodes and weights that approximate an expectation over independent standard normal variables.

    Attributes
    ----------
    nodes : (I, dimensions) array.
    weights : (I,) array that sums to one. Weights of sparse and of nested rules can be negative.
    """

    nodes: Array
    weights: Array


UnivariateRule = Callable[[int], NodesAndWeights]


def gauss_hermite(level: int) -> NodesAndWeights:
    """Gauss-Hermite rule for a standard normal variable with `level` points, in ascending order.

    Raises
    ------
    ValueError
        The level is not between 1 and `MAXIMUM_LEVEL`.
    """
    check_level(level)
    nodes, weights = np.polynomial.hermite_e.hermegauss(level)
    return NodesAndWeights(nodes[:, None], weights / weights.sum())


def nested_gauss_hermite(level: int) -> NodesAndWeights:
    """Nested Gauss-Hermite rule for a standard normal variable, in ascending order.

    Nodes of a level are among those of every higher level. Weights can be negative.
    Source: Genz and Keister (1996), "Fully symmetric interpolatory rules for multiple integrals over infinite regions
    with Gaussian weight", Journal of Computational and Applied Mathematics 71.

    Raises
    ------
    ValueError
        The level is not between 1 and `MAXIMUM_LEVEL`.
    """
    check_level(level)
    size = next(size for highest, size in _NESTED_SIZES if level <= highest)
    positive = np.sort(_NESTED_NODES[1 : (size + 1) // 2])
    nodes = np.concatenate([-positive[::-1], [0.0], positive])
    return NodesAndWeights(nodes[:, None], _interpolatory_weights(nodes))


def product_rule(rule: UnivariateRule, level: int, dimensions: int) -> NodesAndWeights:
    """Tensor product of a univariate rule with itself. Nodes are in lexicographic order."""
    univariate = rule(level)
    product = univariate
    check_node_memory(univariate.weights.size**dimensions, dimensions)
    for _ in range(dimensions - 1):
        product = _outer(univariate, product)
    return product


def sparse_grid(rule: UnivariateRule, level: int, dimensions: int) -> NodesAndWeights:
    """Sparse grid of a univariate rule, exact for polynomials of total degree 2 `level` - 1.

    Nodes are in lexicographic order. Weights can be negative.
    Source: Heiss and Winschel (2008), "Likelihood approximation by numerical integration on sparse grids", Journal of
    Econometrics 144, eq. 9 to 12.
    """
    univariate = [rule(k) for k in range(1, level + 1)]
    differences = univariate[:1] + [_difference(a, b) for a, b in zip(univariate[1:], univariate[:-1], strict=True)]

    # With S_k,1 = U_k and Delta_l = U_l - U_l-1, S_k,d = sum over l = 1, ..., k of Delta_l x S_k-l+1,d-1.
    grids = univariate
    for columns in range(2, dimensions + 1):
        pairs = ((differences[m], grids[k - m]) for k in range(level) for m in range(k + 1))
        check_node_memory(sum(one.weights.size * other.weights.size for one, other in pairs), columns)
        grids = [_merge([_outer(differences[m], grids[k - m]) for m in range(k + 1)]) for k in range(level)]
    return grids[-1]


def check_level(level: int) -> None:
    """Raise a `ValueError` that names the maximum when a level is not available."""
    if not 1 <= level <= MAXIMUM_LEVEL:
        raise ValueError(f"Quadrature rules have levels from 1 to {MAXIMUM_LEVEL}, not {level}.")


def check_node_memory(rows: int, dimensions: int) -> None:
    """Raise `SizeError` when there is no memory for this many rows of nodes, their weights, and a copy of them."""
    require_memory(
        16 * rows * (dimensions + 1),
        f"Integration: {rows:,} nodes of {dimensions} dimensions",
        "Use a smaller size, another rule, or fewer markets and dimensions.",
    )


def _interpolatory_weights(nodes: Array) -> Array:
    """Weights E[L_i(x)] of symmetric nodes. The Lagrange polynomial L_i is one at node i and zero at the others."""
    exact = gauss_hermite(math.ceil(nodes.size / 2))
    weights = np.empty_like(nodes)
    for i, node in enumerate(nodes):
        others = np.delete(nodes, i)
        weights[i] = np.sum(exact.weights * np.prod((exact.nodes - others) / (node - others), axis=1))
    return (weights + weights[::-1]) / 2


def _outer(first: NodesAndWeights, second: NodesAndWeights) -> NodesAndWeights:
    """Product of two rules. Columns of the first one come first, and its nodes vary slowest."""
    rows, other_rows = first.weights.size, second.weights.size
    nodes = np.column_stack([np.repeat(first.nodes, other_rows, axis=0), np.tile(second.nodes, (rows, 1))])
    return NodesAndWeights(nodes, np.outer(first.weights, second.weights).ravel())


def _difference(first: NodesAndWeights, second: NodesAndWeights) -> NodesAndWeights:
    return _merge([first, NodesAndWeights(second.nodes, -second.weights)])


def _merge(rules: list[NodesAndWeights]) -> NodesAndWeights:
    """Sum of rules: equal nodes become one, and nodes are in lexicographic order."""
    nodes = np.concatenate([rule.nodes for rule in rules])
    weights = np.concatenate([rule.weights for rule in rules])
    order = np.lexsort(nodes.T[::-1])
    nodes, weights = nodes[order], weights[order]
    starts = np.flatnonzero(np.append(True, np.any(nodes[1:] != nodes[:-1], axis=1)))
    return NodesAndWeights(nodes[starts], np.add.reduceat(weights, starts))
