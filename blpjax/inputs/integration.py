"""How to draw unobserved agent characteristics: `Integration` builds nodes and weights for one market or many."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from blpjax.inputs.quadrature import (
    Array,
    NodesAndWeights,
    check_level,
    check_node_memory,
    gauss_hermite,
    nested_gauss_hermite,
    product_rule,
    sparse_grid,
)
from blpjax.values import check_integer, read_seed

_DESCRIPTIONS = {
    "monte_carlo": "Monte Carlo simulation",
    "halton": "Halton sequences",
    "lhs": "Latin Hypercube Sampling (LHS)",
    "mlhs": "Modified Latin Hypercube Sampling (MLHS)",
    "product": "the Gauss-Hermite product rule",
    "nested_product": "the nested Gauss-Hermite product rule",
    "grid": "a sparse grid of Gauss-Hermite rules",
    "nested_grid": "a sparse grid of nested Gauss-Hermite rules",
}
_QUADRATURE = {
    "product": (product_rule, gauss_hermite),
    "nested_product": (product_rule, nested_gauss_hermite),
    "grid": (sparse_grid, gauss_hermite),
    "nested_grid": (sparse_grid, nested_gauss_hermite),
}
_DEFAULT_DISCARD = 1000


@dataclass(frozen=True, eq=False)
class AgentNodes:
    """Nodes and weights of the agents in several markets, stacked in the order of the markets.

    Attributes
    ----------
    market_ids : (I,) array, the market of each row.
    nodes : (I, dimensions) array.
    weights : (I,) array that sums to one in each market.
    """

    market_ids: npt.NDArray[Any]
    nodes: Array
    weights: Array


@dataclass(frozen=True, init=False, repr=False)
class Integration:
    """Configuration for nodes and weights that approximate expectations over standard normal agent characteristics.

    Configurations are immutable and equal when their values are. Build nodes with `build`, `build_many` or
    `build_integration`.

    Parameters
    ----------
    specification : str
        Draws: `'monte_carlo'`, `'halton'`, `'lhs'` (Latin hypercube) or `'mlhs'` (modified Latin hypercube: Hess, Train
        and Polak, 2006). Quadrature: `'product'`, `'nested_product'`, `'grid'` or `'nested_grid'`, where grids are
        sparse (Heiss and Winschel, 2008). Weights of grids and of nested rules can be negative.
    size : int
        Number of draws in each market, or level of the quadrature rule, from 1 to 25.
    specification_options : mapping, optional
        Quadrature rules have no options. Draws accept `seed`, an integer; by default they differ each time. `'halton'`
        also accepts `discard`, how many points at the start of the sequence are skipped (by default 1000), and
        `scramble`, whether digits are randomly permuted (by default true; Owen, 2017). Without scrambling, the seed is
        irrelevant. With a seed, all draws are PyBLP's. With ``scramble='scipy'`` permutations are those of SciPy's
        generator, which is quicker, and which draws without a seed always use.

    Attributes
    ----------
    specification, size : as above.
    seed : int or None.
    discard, scramble : int and bool or `'scipy'`, or None for rules other than `'halton'`.

    Raises
    ------
    ValueError
        The specification or an option is unknown, a value is out of range, or the level exceeds the maximum.
    TypeError
        An argument or option has the wrong type.

    Examples
    --------
    >>> Integration("monte_carlo", size=200, specification_options={"seed": 0})
    Configured to build nodes and weights with Monte Carlo simulation of size 200 and options {seed: 0}.
    >>> Integration("grid", size=5).build(dimensions=2).nodes.shape
    (53, 2)
    """

    specification: str
    size: int
    seed: int | None
    discard: int | None
    scramble: bool | str | None

    def __init__(self, specification: str, size: int, specification_options: Mapping[str, Any] | None = None) -> None:
        if not isinstance(specification, str):
            raise TypeError(f"specification must be a string, not {specification!r}.")
        if specification not in _DESCRIPTIONS:
            raise ValueError(f"specification must be one of {sorted(_DESCRIPTIONS)}, not {specification!r}.")
        size = check_integer("size", size, minimum=1)
        if specification in _QUADRATURE:
            check_level(size)
        options = _checked_options(specification, specification_options)
        object.__setattr__(self, "specification", specification)
        object.__setattr__(self, "size", size)
        for name in ("seed", "discard", "scramble"):
            object.__setattr__(self, name, options.get(name))

    def __repr__(self) -> str:
        options = ", ".join(f"{name}: {value}" for name, value in self.specification_options.items())
        kind = "level" if self.specification in _QUADRATURE else "size"
        text = f"Configured to build nodes and weights with {_DESCRIPTIONS[self.specification]} of {kind} {self.size}"
        return f"{text} and options {{{options}}}." if options else f"{text}."

    @property
    def specification_options(self) -> dict[str, Any]:
        """Options in effect, defaults included, as a new dictionary."""
        options = {"discard": self.discard, "scramble": self.scramble, "seed": self.seed}
        return {name: value for name, value in options.items() if value is not None}

    @property
    def random(self) -> bool:
        """Whether nodes depend on a seed: quadrature and Halton sequences that are not scrambled do not."""
        return self.specification not in _QUADRATURE and self.scramble is not False

    def build(self, dimensions: int) -> NodesAndWeights:
        """Build nodes and weights for one market.

        Parameters
        ----------
        dimensions : int
            Number of columns of nodes.

        Returns
        -------
        NodesAndWeights
            Nodes (I, dimensions) and weights (I,).

        Raises
        ------
        ValueError
            `dimensions` is not positive.
        TypeError
            `dimensions` is not an integer.
        SizeError
            There is not enough memory for so many nodes.
        """
        dimensions = check_integer("dimensions", dimensions, minimum=1)
        return self._build(dimensions, markets=1)

    def build_many(self, dimensions: int, ids: Sequence[Any] | npt.NDArray[Any]) -> AgentNodes:
        """Build nodes and weights for several markets.

        Draws of different markets differ: one generator, or one Halton sequence, serves all markets in the order of
        their IDs. The first market gets what `build` would return. Quadrature nodes are the same in all markets.

        Parameters
        ----------
        dimensions : int
            Number of columns of nodes.
        ids : (T,) distinct market IDs. PyBLP passes them sorted.

        Returns
        -------
        AgentNodes
            Market IDs (I,), nodes (I, dimensions) and weights (I,), where I counts the agents of all markets.

        Raises
        ------
        ValueError
            `dimensions` is not positive, or the IDs are not a one-dimensional collection of distinct IDs.
        TypeError
            `dimensions` is not an integer.
        SizeError
            There is not enough memory for so many nodes.
        """
        dimensions = check_integer("dimensions", dimensions, minimum=1)
        market_ids = np.asarray(ids)
        if market_ids.ndim != 1 or market_ids.size == 0 or len(set(market_ids.tolist())) != market_ids.size:
            raise ValueError("ids must be a one-dimensional collection of at least one distinct market ID.")
        built = self._build(dimensions, markets=market_ids.size)
        return AgentNodes(np.repeat(market_ids, built.weights.size // market_ids.size), built.nodes, built.weights)

    def _build(self, dimensions: int, markets: int) -> NodesAndWeights:
        if self.specification in _QUADRATURE:
            combine, rule = _QUADRATURE[self.specification]
            built = combine(rule, self.size, dimensions)
            check_node_memory(markets * built.weights.size, dimensions)
            return NodesAndWeights(np.tile(built.nodes, (markets, 1)), np.tile(built.weights, markets))
        check_node_memory(markets * self.size, dimensions)
        if self.specification == "halton":
            nodes = self._draw_halton(markets, dimensions)
        else:
            state = np.random.RandomState(self.seed)
            draw = _DRAWS[self.specification]
            nodes = np.concatenate([draw(state, self.size, dimensions) for _ in range(markets)])
        return NodesAndWeights(nodes, np.full(markets * self.size, 1 / self.size))

    def _draw_halton(self, markets: int, dimensions: int) -> Array:
        from scipy.special import ndtri

        discard = self.discard or 0
        if self.scramble is True and self.seed is not None:
            state = np.random.RandomState(self.seed)
            starts = range(discard, discard + markets * self.size, self.size)
            return ndtri(np.concatenate([_scrambled_halton(state, start, self.size, dimensions) for start in starts]))
        from scipy.stats import qmc  # a slow import that only these draws need

        sequence = qmc.Halton(dimensions, scramble=bool(self.scramble), rng=np.random.default_rng(self.seed))
        if discard:
            sequence.fast_forward(discard)
        return ndtri(sequence.random(markets * self.size))


@dataclass(frozen=True, init=False, repr=False, eq=False)
class BuiltIntegration(Integration):
    """An integration with the nodes and weights that it has built already: without a seed others would be drawn."""

    built: AgentNodes

    def __init__(self, integration: Integration, built: AgentNodes) -> None:
        super().__init__(integration.specification, integration.size, integration.specification_options)
        object.__setattr__(self, "built", built)

    def build_many(self, dimensions: int, ids: Any) -> AgentNodes:
        """Return what was built."""
        return self.built


def _draw_monte_carlo(state: np.random.RandomState, size: int, dimensions: int) -> Array:
    return state.normal(size=(size, dimensions))


def _draw_latin_hypercube(state: np.random.RandomState, size: int, dimensions: int) -> Array:
    """One draw in each of `size` equally likely intervals, with intervals in random order in each dimension."""
    from scipy.special import ndtri  # a slow import that only these draws need

    columns = [state.permutation((np.arange(size) + state.uniform(size=size)) / size) for _ in range(dimensions)]
    return ndtri(np.column_stack(columns))


def _draw_modified_latin_hypercube(state: np.random.RandomState, size: int, dimensions: int) -> Array:
    """As above, but with the same random position in all intervals: draws are equally spaced in each dimension."""
    from scipy.special import ndtri  # a slow import that only these draws need

    columns = [state.permutation((np.arange(size) + state.uniform(size=1)) / size) for _ in range(dimensions)]
    return ndtri(np.column_stack(columns))


def _scrambled_halton(state: np.random.RandomState, start: int, size: int, dimensions: int) -> Array:
    """Points `start` and following of a Halton sequence (size, dimensions) with randomly permuted digits.

    In each dimension, each digit has a permutation of its own, drawn from the first digit on for as long as digits
    matter in double precision (Owen, 2017). Markets go on in the sequence, with other permutations.
    """
    points = np.zeros((size, dimensions))
    for column, base in zip(points.T, _first_primes(dimensions), strict=True):
        left, place = np.arange(start, start + size), 1 / base
        while 1 - place < 1:
            left, digits = np.divmod(left, base)
            column += state.permutation(base)[digits] * place
            place /= base
    return points


def _first_primes(count: int) -> list[int]:
    primes: list[int] = []
    candidate = 2
    while len(primes) < count:
        if all(candidate % prime for prime in primes):
            primes.append(candidate)
        candidate += 1
    return primes


_DRAWS: dict[str, Callable[[np.random.RandomState, int, int], Array]] = {
    "monte_carlo": _draw_monte_carlo,
    "lhs": _draw_latin_hypercube,
    "mlhs": _draw_modified_latin_hypercube,
}


def _checked_options(specification: str, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Options with defaults, checked by name, type and range."""
    if options is not None and not isinstance(options, Mapping):
        raise TypeError(f"specification_options must be None or a dict, not {options!r}.")
    options = dict(options or {})
    known: list[str] = []
    if specification not in _QUADRATURE:
        known = ["discard", "scramble", "seed"] if specification == "halton" else ["seed"]
    for name in options:
        if name not in known:
            supported = f"it supports {known}" if known else "quadrature rules have no options"
            raise ValueError(f"The specification '{specification}' has no option {name!r}: {supported}.")
    if "seed" in options:
        # no seed is no option: None is refused
        check_integer("The specification option seed", options["seed"], minimum=0)
        options["seed"] = read_seed("The specification option seed", options["seed"])
    return _checked_halton_options(options) if specification == "halton" else options


def _checked_halton_options(options: dict[str, Any]) -> dict[str, Any]:
    discard, scramble = options.get("discard", _DEFAULT_DISCARD), options.get("scramble", True)
    discard = check_integer("The specification option discard", discard, minimum=0)
    if not isinstance(scramble, (bool, np.bool_)) and scramble != "scipy":
        raise TypeError(f"The specification option scramble must be True, False or 'scipy', not {scramble!r}.")
    if not scramble and discard == 0:
        # An unscrambled sequence starts at zero, where the normal quantile is minus infinity.
        raise ValueError(
            "The specification option discard must be at least 1 when scramble is False: the first point of the "
            "sequence gives infinite nodes."
        )
    return options | {"discard": discard, "scramble": scramble if scramble == "scipy" else bool(scramble)}
