"""Excluded instruments made of the characteristics of other products in the market.

Everything is computed market by market and in blocks of rows, so memory beyond the result is a few megabytes, plus
J x J ownership of one market.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from blpjax.inputs.absorb import build_absorber
from blpjax.inputs.columns import read_market_ids, read_required_ids
from blpjax.inputs.formulation import Formulation
from blpjax.inputs.table_format import read_table
from blpjax.values import read_flag

#: Elements of the largest temporary array, unless differences from a single product are more.
_BLOCK = 2**18


def build_blp_instruments(formulation: Formulation, product_data: object) -> np.ndarray:
    r"""Construct sums of the characteristics of other products.

    For product j of firm f in market t with characteristics :math:`x_{jt}`, the rows of X, they are

    .. math:: Z_{jt} = \left[\sum_{k \in J_{ft} \setminus \{j\}} x_{kt}, \ \sum_{k \notin J_{ft}} x_{kt}\right].

    Parameters
    ----------
    formulation : what is in X: K columns, which are residuals if the formulation absorbs fixed effects.
    product_data : DataFrame, mapping from names to arrays, or structured array with N rows. Columns `market_ids` and
        `firm_ids` are required, and those that the formula uses.

    Returns
    -------
    (N, 2K) matrix in units of X: K sums over other products of the same firm, then K sums over products of rivals. Sums
    over no products are exactly zero. A constant column of firm IDs makes the first half sums over all other products.

    Raises
    ------
    TypeError
        When an argument is of the wrong type.
    DataError
        When a column is missing or has missing or unusable values. The message names column, market and row.
    ConvergenceError
        When fixed effects cannot be absorbed to the method's tolerance.

    Notes
    -----
    From Berry, Levinsohn and Pakes (1995), section 5.1. Add exogenous demand or cost shifters to them as needed.

    Examples
    --------
    >>> data = {"market_ids": [0, 0, 0], "firm_ids": ["a", "a", "b"], "x": [1, 2, 4]}
    >>> build_blp_instruments(Formulation("0 + x"), data)
    array([[2., 4.],
           [1., 4.],
           [0., 3.]])
    """
    data = _read_characteristics(formulation, product_data, "build_blp_instruments")
    firms = np.unique(np.column_stack([data.market_codes, data.firm_codes]), axis=0, return_inverse=True)[1].ravel()
    own = _group_sums(data.X, firms)
    # Both sums add the same rows in the same order when a market has only one firm, so that the difference is zero.
    rivals = _group_sums(data.X, data.market_codes) - own
    return np.hstack([own - data.X, rivals])


def build_differentiation_instruments(
    formulation: Formulation, product_data: object, version: str = "local", interact: bool = False
) -> np.ndarray:
    r"""Construct sums of functions of differences from other products.

    With differences :math:`d_{jk\ell} = x_{j\ell} - x_{k\ell}` between products j and k of a market in characteristic
    :math:`\ell`, a column of X, the functions are

    .. math::
        \text{local:} \quad & 1(|d_{jk\ell}| < \text{SD}_\ell), \qquad
        \text{interacted:} \quad 1(|d_{jk\ell}| < \text{SD}_\ell) \, d_{jkm} \text{ for all } \ell, m; \\
        \text{quadratic:} \quad & d_{jk\ell}^2, \qquad
        \text{interacted:} \quad d_{jk\ell} \, d_{jkm} \text{ for all } m \ge \ell,

    where :math:`\text{SD}_\ell` is the standard deviation of differences over all pairs of products in all markets.

    Parameters
    ----------
    formulation : what is in X: K columns, which are residuals if the formulation absorbs fixed effects. A constant has
        no differences, and adds columns of zeros.
    product_data : DataFrame, mapping from names to arrays, or structured array with N rows. Columns `market_ids` and
        `firm_ids` are required, and those that the formula uses.
    version : `"local"` or `"quadratic"`.
    interact : whether characteristics are interacted.

    Returns
    -------
    (N, 2M) matrix: M sums over other products of the same firm, then M sums over products of rivals, in the order
    of :math:`\ell` and for each of it that of m. Here M is K; interacted it is K * K in the local version and
    K * (K + 1) / 2 in the quadratic one. A constant column of firm IDs makes the first half sums over all other
    products.

    Raises
    ------
    TypeError
        When an argument is of the wrong type.
    ValueError
        When the version is unknown.
    DataError
        When a column is missing or has missing or unusable values. The message names column, market and row.
    ConvergenceError
        When fixed effects cannot be absorbed to the method's tolerance.

    Notes
    -----
    From Gandhi and Houde (2020), "Measuring Substitution Patterns in Differentiated-Products Industries". Differences
    are :math:`x_j - x_k` as in PyBLP's code; its documentation has the opposite sign, which matters for interacted
    local instruments only.

    Examples
    --------
    >>> data = {"market_ids": [0, 0, 0], "firm_ids": ["a", "a", "b"], "x": [1, 2, 4]}
    >>> build_differentiation_instruments(Formulation("0 + x"), data)
    array([[1., 0.],
           [1., 1.],
           [0., 1.]])
    >>> build_differentiation_instruments(Formulation("0 + x"), data, version="quadratic")
    array([[ 1.,  9.],
           [ 1.,  4.],
           [ 0., 13.]])
    """
    if version not in ("local", "quadratic"):
        raise ValueError(f"version must be 'local' or 'quadratic', not {version!r}.")
    interact = read_flag("interact", interact)
    data = _read_characteristics(formulation, product_data, "build_differentiation_instruments")
    N, K = data.X.shape
    deviations = _pairwise_deviations(data) if version == "local" else None
    width = K if not interact else K * K if version == "local" else K * (K + 1) // 2
    instruments = np.empty((N, 2 * width))
    for rows, products in _blocks(data):
        same_firm = data.firm_codes[rows][:, None] == data.firm_codes[products]
        other = rows[:, None] != products
        differences = data.X[rows][:, None, :] - data.X[products]
        instruments[rows, :width] = _sum_terms(same_firm & other, differences, deviations, interact)
        instruments[rows, width:] = _sum_terms(~same_firm, differences, deviations, interact)
    return instruments


@dataclass(frozen=True, eq=False)
class _Characteristics:
    """Characteristics X (N, K), and codes (N,) from zero of markets and of firms."""

    X: np.ndarray
    market_codes: np.ndarray
    firm_codes: np.ndarray


def _read_characteristics(formulation: Formulation, product_data: object, user: str) -> _Characteristics:
    table = "product_data"
    if not isinstance(formulation, Formulation):
        raise TypeError(f"formulation must be a Formulation, not {type(formulation).__name__}.")
    columns = read_table(product_data, table)
    market_ids = read_market_ids(columns, table, user)
    firm_ids = read_required_ids(columns, "firm_ids", table, market_ids, user)
    codes = [np.unique(ids, return_inverse=True)[1].ravel() for ids in (market_ids, firm_ids)]
    X = build_absorber(formulation, columns, table).residualize(formulation.build(columns, table).values)
    return _Characteristics(X, *codes)


def _group_sums(X: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """For each row (N, K) the sums over its group."""
    sums = np.empty_like(X)
    for k in range(X.shape[1]):
        sums[:, k] = np.bincount(codes, X[:, k])[codes]
    return sums


def _blocks(data: _Characteristics) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Blocks of rows, each with all rows of their market, such that differences between the two fit into memory."""
    K = data.X.shape[1]
    order = np.argsort(data.market_codes, kind="stable")
    for products in np.split(order, np.cumsum(np.bincount(data.market_codes))[:-1]):
        size = max(1, _BLOCK // (products.size * K))
        for start in range(0, products.size, size):
            yield products[start : start + size], products


def _pairwise_deviations(data: _Characteristics) -> np.ndarray:
    """Standard deviations (K,) of differences between distinct products of a market; zero without such pairs."""
    squares, pairs = np.zeros(data.X.shape[1]), 0
    for rows, products in _blocks(data):
        differences = data.X[rows][:, None, :] - data.X[products]
        # Not from moments of X: sums of squared differences are exact for integers, and so is what equals the deviation
        squares += np.square(differences).sum(axis=(0, 1))
        pairs += rows.size * (products.size - 1)
    # The mean of differences is zero, because each is there with both signs.
    return np.sqrt(squares / max(pairs, 1))


def _sum_terms(
    included: np.ndarray, differences: np.ndarray, deviations: np.ndarray | None, interact: bool
) -> np.ndarray:
    """Sum functions of differences (R, J, K) over the included (R, J) products, (R, M).

    With deviations (K,) they are those of the local version, without those of the quadratic one.
    """
    weights = included.astype(float)[:, :, None]
    first = differences if deviations is None else (np.abs(differences) < deviations).astype(float)
    if not interact:
        second = np.square(differences) if deviations is None else first
        return np.matmul(weights.transpose(0, 2, 1), second)[:, 0]
    products = np.matmul((weights * first).transpose(0, 2, 1), differences)  # (R, K, K)
    if deviations is not None:
        return products.reshape(products.shape[0], -1)
    upper = np.triu_indices(products.shape[1])
    return products[:, upper[0], upper[1]]
