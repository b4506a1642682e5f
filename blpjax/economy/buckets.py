"""The data of an economy as arrays that compiled programs read: markets padded into a few size buckets.

A padded product has a share and an availability of zero and characteristics of zero; a padded agent has a weight of
zero. Vectors over products exist in two layouts: *long*, one element for each row of the user's product table, and
*padded*, the buckets' (T, J) arrays laid end to end. `Economy.gather` turns padded into long, `Economy.scatter` long
into padded. All of this works on arrays of JAX, and on NumPy arrays of an economy on the host.
"""

import dataclasses
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from blpjax.inputs.demographics import build_demographics
from blpjax.inputs.design import Column
from blpjax.inputs.formulation import Formulation
from blpjax.inputs.integration import Integration
from blpjax.inputs.table_format import plain_value
from blpjax.inputs.tables import AgentTable, read_agents
from blpjax.kernels.arrays import AnyArray, namespace
from blpjax.machine.forks import check_process
from blpjax.machine.memory import require_memory
from blpjax.machine.placement import Placement

MAX_BUCKETS = 4

#: How many arrays of a market's products and agents an evaluation of the objective holds at least: four were measured.
_ARRAYS_OF_PAIRS = 4

#: Another bucket, and so another part in every compiled program, has to save this share of the padded work,
_WORTHWHILE = 0.1

#: and at least that many pairs of products and agents: what they cost in a hundred evaluations is less than a second,
#: about what compilation of another part takes.
WORTHWHILE_PAIRS = 2**16

#: More padded work than this many times the actual counts so many times.
_WASTEFUL, _WASTEFUL_WEIGHT = 1.5, 10.0


class Bucket(eqx.Module):
    """Markets of similar size: T markets of at most J products and I agents.

    With nests, `groups` are codes of the groups in each market, and `nests` which of these a product belongs to, -1 for
    padding. Where groups lie within others, `outer` are codes of these, and `parents` which of them a group belongs to.
    Demographics are (T, I, D, J) where they are specific to products. Counterfactuals may have `offsets`
    of utilities. With a `placement`, markets are spread over its devices, and some of them have no products: see
    `blpjax.economy.sharding`.
    """

    shares: Float[AnyArray, "T J"]
    X2: Float[AnyArray, "T J K2"]
    availability: Float[AnyArray, "T J #I"]
    weights: Float[AnyArray, "T I"]
    nodes: Float[AnyArray, "T I R"]
    demographics: Float[AnyArray, "T I D"] | Float[AnyArray, "T I D J"]
    nests: Int[AnyArray, "T J"] | None = None
    groups: Int[AnyArray, "T H"] | None = None
    parents: Int[AnyArray, "T H"] | None = None
    outer: Int[AnyArray, "T G"] | None = None
    offsets: Float[AnyArray, "T J I"] | None = None
    placement: Placement | None = eqx.field(static=True, default=None)

    @property
    def size(self) -> tuple[int, int, int]:
        """Numbers of markets, products and agents (T, J, I)."""
        return (self.shares.shape[0], self.shares.shape[1], self.weights.shape[1])

    @property
    def present(self) -> Bool[AnyArray, "*T J"]:
        """Whether a product is one, and not padding: somebody can choose it."""
        return (self.availability > 0).any(axis=-1)


class Economy(eqx.Module):
    """All markets of a problem.

    `positions` (N,) says where each long row stands in the padded layout, and `sources` which long row a place of the
    padded layout shows: for padding, the first row of its market. `market_positions` (T,) says where each market, in
    the sorted order of its IDs, stands among the buckets' markets laid end to end.
    """

    buckets: tuple[Bucket, ...]
    positions: Int[AnyArray, " N"]
    sources: Int[AnyArray, " padded"]
    market_positions: Int[AnyArray, " T"]

    @property
    def padded_size(self) -> int:
        """Number of product places, padding included."""
        return sum(bucket.shares.size for bucket in self.buckets)

    @property
    def placement(self) -> Placement | None:
        """Devices that markets are spread over, or None where one device has all of them."""
        return self.buckets[0].placement

    @property
    def on_host(self) -> bool:
        """Whether arrays are those of NumPy."""
        return isinstance(self.positions, np.ndarray)

    def gather(self, parts: Sequence[AnyArray]) -> AnyArray:
        """Long rows (N, ...) of arrays (T, J, ...), one for each bucket. They are on every device."""
        parts = self.collect(parts)
        flat = [part.reshape(part.shape[0] * part.shape[1], *part.shape[2:]) for part in parts]
        if self.on_host:
            # a market alone has rows of no product, whose positions are beyond the last
            return np.concatenate(flat).take(self.positions, axis=0, mode="clip")
        return jnp.concatenate(flat).at[self.positions].get(mode="clip", wrap_negative_indices=False)

    def scatter(self, values: AnyArray) -> tuple[AnyArray, ...]:
        """Arrays (T, J, ...), one for each bucket, of long rows (N, ...). Padding is zero."""
        return self._split(self._place(self.padded_size, self.positions, values))

    def spread(self, values: AnyArray) -> tuple[AnyArray, ...]:
        """Arrays (T, J, ...), one for each bucket, of long rows (N, ...). Padding repeats its market's first product.

        Functions of variables, such as logarithms, stay finite there.
        """
        return self._split(values[self.sources])

    def with_products(self, shares: AnyArray, X2: AnyArray) -> "Economy":
        """The same markets with other shares (N,) and characteristics X2 (N, K2)."""
        known = zip(self.buckets, self.scatter(shares), self.scatter(X2), strict=True)
        buckets = tuple(eqx.tree_at(lambda b: (b.shares, b.X2), bucket, values) for bucket, *values in known)
        return eqx.tree_at(lambda e: e.buckets, self, buckets)

    def stack(self, parts: Sequence[AnyArray]) -> AnyArray:
        """Rows (N, widest, ...) of arrays (T, J, J, ...), one for each bucket: NaN at padded products."""
        known = []
        for part, bucket in zip(parts, self.buckets, strict=True):
            for axis in range(2, part.ndim):
                others = [other for other in range(1, part.ndim) if other != axis]
                part = self._xp.where(self._xp.expand_dims(bucket.present, others), part, np.nan)
            known.append(part)
        return self.gather(widened(known, 2, np.nan))

    def unstack(self, rows: AnyArray) -> tuple[AnyArray, ...]:
        """Arrays (T, J, J), one for each bucket, of rows (N, widest). Padding is zero."""
        parts = []
        everywhere = self.collect([bucket.present for bucket in self.buckets])
        for present, part in zip(everywhere, self.scatter(rows), strict=True):
            J = present.shape[1]
            cut = self._xp.pad(part, ((0, 0), (0, 0), (0, max(0, J - part.shape[2]))))[:, :, :J]
            parts.append(self._xp.where(present[:, None, :] & present[:, :, None], cut, 0.0))
        return tuple(parts)

    def collect(self, parts: Sequence[AnyArray]) -> Sequence[AnyArray]:
        """Arrays by bucket, from all devices: whatever follows is computed on each, and every process can read it."""
        placement = self.placement
        return parts if placement is None else placement.gather(list(parts))

    def gather_markets(self, parts: Sequence[AnyArray]) -> AnyArray:
        """Values by market (T, ...) in the sorted order of market IDs, from one array (T_b, ...) for each bucket."""
        return self._xp.concatenate(self.collect(parts))[self.market_positions]

    def scatter_pairs(
        self, products: "MarketIndex", agents: "MarketIndex", values: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        """Arrays (T, J, I), one for each bucket, of rows of agents (I, max J) on the host. Padding is zero."""
        places = np.asarray(self.market_positions)
        parts, first = [], 0
        for bucket in self.buckets:
            part = np.zeros(bucket.size)
            for t in np.flatnonzero((places >= first) & (places < first + bucket.size[0])):
                own = values[agents.rows[t], : products.rows[t].size]
                part[places[t] - first, : own.shape[1], : own.shape[0]] = own.T
            parts.append(part)
            first += bucket.size[0]
        return tuple(parts)

    def scatter_markets(self, values: AnyArray) -> tuple[AnyArray, ...]:
        """Arrays (T_b, J), one for each bucket, that repeat values by market (T,) for all places of a market."""
        sizes = np.cumsum([bucket.size[0] for bucket in self.buckets])
        parts = self._xp.split(self._place(int(sizes[-1]), self.market_positions, values), sizes[:-1])
        return tuple(
            self._xp.broadcast_to(part[:, None], bucket.size[:2])
            for part, bucket in zip(parts, self.buckets, strict=True)
        )

    @property
    def _xp(self) -> ModuleType:
        return namespace(self.positions)

    def _place(self, size: int, places: AnyArray, values: AnyArray) -> AnyArray:
        """Zeros of this size, but for the values in their places."""
        zeros = self._xp.zeros((size, *values.shape[1:]), values.dtype)
        if not isinstance(zeros, np.ndarray):
            return zeros.at[places].set(values, mode="drop", wrap_negative_indices=False)
        known = places < size
        zeros[places[known]] = values[known]
        return zeros

    def _split(self, flat: AnyArray) -> tuple[AnyArray, ...]:
        parts, at = [], 0
        for bucket in self.buckets:
            T, J, _ = bucket.size
            parts.append(flat[at : at + T * J].reshape(T, J, *flat.shape[1:]))
            at += T * J
        return tuple(parts)


def widened(parts: Sequence[AnyArray], first: int, fill: float = 0.0) -> list[AnyArray]:
    """Arrays, one for each bucket, that are filled up to the widest one in the axis `first` and those after it."""
    widest = [max(sizes) for sizes in zip(*(part.shape[first:] for part in parts), strict=True)]
    padding = [[(0, most - size) for most, size in zip(widest, part.shape[first:], strict=True)] for part in parts]
    return [
        namespace(part).pad(part, [(0, 0)] * first + more, constant_values=fill)
        for part, more in zip(parts, padding, strict=True)
    ]


class MarketIndex(NamedTuple):
    """Which rows belong to which market: IDs in sorted order, and for each the rows of a table in the table's order."""

    ids: np.ndarray
    rows: tuple[np.ndarray, ...]

    @property
    def codes(self) -> np.ndarray:
        """(N,) position of each row's market among `ids`."""
        rows = np.concatenate(self.rows)
        codes = np.empty(rows.size, int)
        codes[rows] = np.repeat(np.arange(len(self.rows)), [own.size for own in self.rows])
        return codes

    @property
    def long_ids(self) -> np.ndarray:
        """(N,) market ID of each row."""
        return self.ids[self.codes]


@dataclasses.dataclass(frozen=True, eq=False)
class AgentsInEconomy:
    """Checked agent data, their demographics (I, D), or (I, D, max J), with columns, and the economy they live in.

    `counts` are numbers of agents by market, in the sorted order of market IDs.
    """

    table: AgentTable
    demographics: np.ndarray
    demographic_columns: tuple[Column, ...]
    economy: Economy
    counts: tuple[int, ...]

    @property
    def demographic_labels(self) -> tuple[str, ...]:
        """D labels of demographics."""
        return tuple(column.label for column in self.demographic_columns)


def index_markets(market_ids: np.ndarray) -> MarketIndex:
    """Rows of each market, for market IDs (N,)."""
    ids, codes = np.unique(market_ids, return_inverse=True)
    order = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes, minlength=ids.size))
    return MarketIndex(ids, tuple(np.split(order, ends[:-1])))


def build_economy(
    products: MarketIndex,
    agents: MarketIndex,
    *,
    shares: np.ndarray,
    X2: np.ndarray,
    weights: np.ndarray,
    nodes: np.ndarray,
    demographics: np.ndarray,
    availability: np.ndarray | None = None,
    nests: np.ndarray | None = None,
) -> Economy:
    """Pad the long arrays of a problem into buckets.

    Parameters
    ----------
    products, agents : rows of each market in the two tables, over the same IDs.
    shares : (N,) market shares; X2 : (N, K2) characteristics.
    weights, nodes, demographics : (I,), (I, R) and (I, D), or (I, D, max J), rows of the agent table.
    availability : (I, max J) agents' availability of the products of their market, or None where all can be chosen.
    nests : (N, levels) codes of products' groups, the innermost first, or None.
    """
    check_process()
    sizes = np.array([(p.size, a.size) for p, a in zip(products.rows, agents.rows, strict=True)])
    groups = bucket_markets(sizes)
    buckets, positions, at = [], np.zeros(shares.size, int), 0
    sources = np.zeros(sum(len(group) * sizes[group, 0].max() for group in groups), int)
    for group in groups:
        J, width = sizes[group].max(axis=0).tolist()
        rows, people = (_places([index.rows[t] for t in group]) for index in (products, agents))
        positions[rows.rows] = at + rows.markets * J + rows.columns
        firsts = rows.rows[rows.columns == 0]
        sources[at : at + len(group) * J] = np.repeat(firsts, J)
        sources[positions[rows.rows]] = rows.rows
        at += len(group) * J
        buckets.append(
            Bucket(
                shares=_pad(shares, rows, J),
                X2=_pad(X2, rows, J),
                availability=_pad_availability(availability, rows, people, J, width),
                weights=_pad(weights, people, width),
                nodes=_pad(nodes, people, width),
                demographics=_pad(demographics[..., :J] if demographics.ndim == 3 else demographics, people, width),
                **_pad_nests(nests, rows, J),
            )
        )
    market_positions = np.argsort(np.concatenate(groups))
    return Economy(tuple(buckets), jax.device_put(positions), jax.device_put(sources), jax.device_put(market_positions))


def build_agents(
    formulation: Formulation | None,
    data: object,
    integration: Integration | None,
    products: MarketIndex,
    shares: np.ndarray,
    X2: np.ndarray,
    weights_tol: float,
    nests: np.ndarray | None = None,
) -> AgentsInEconomy:
    """Check agent data, or build agents, and put them into an economy with the products.

    Parameters
    ----------
    formulation : demographics, or None.
    data, integration : agent data, what builds nodes and weights, or both; see `read_agents`.
    products : rows of each market in the product table.
    shares, X2 : (N,) market shares and (N, K2) characteristics.
    weights_tol : by how much weights may differ from summing to one without a warning.
    nests : as in `build_economy`.

    Raises
    ------
    DataError, ValueError, TypeError
        When agents cannot be used; see `read_agents`.
    SizeError
        When there is no memory for the products and agents of the largest market.
    """
    if isinstance(integration, Integration) and data is None:
        _check_pairs(products, np.full(len(products.rows), integration.size))  # at least so many
    names = None if formulation is None else formulation.names
    agents = read_agents(data, integration, X2.shape[1], products.long_ids, names, weights_tol)
    columns: tuple[Column, ...] = ()
    demographics = np.zeros((agents.weights.size, 0))
    if formulation is not None:
        values, columns = build_demographics(formulation, agents.data, products.long_ids)
        demographics = values if agents.rows is None else values[agents.rows]
    index = index_markets(agents.market_ids)
    _check_pairs(products, np.array([rows.size for rows in index.rows]))
    economy = build_economy(
        products,
        index,
        shares=shares,
        X2=X2,
        weights=agents.weights,
        nodes=agents.nodes,
        demographics=demographics,
        availability=agents.availability,
        nests=nests,
    )
    return AgentsInEconomy(agents, demographics, columns, economy, tuple(rows.size for rows in index.rows))


def _check_pairs(products: MarketIndex, agents: np.ndarray) -> None:
    """Raise `SizeError` when there is no memory for pairs of products and agents (T,), of which programs have four."""
    sizes = np.array([rows.size for rows in products.rows])
    t = int(np.argmax(sizes * agents))
    J, width = int(sizes[t]), int(agents[t])
    require_memory(
        8 * _ARRAYS_OF_PAIRS * J * width,
        f"Market {plain_value(products.ids[t])!r}, with {J:,} products times {width:,} agents,",
        "Use fewer agents, or smaller markets.",
    )


def bucket_markets(sizes: np.ndarray, most: int = MAX_BUCKETS) -> list[np.ndarray]:
    """Group markets of sizes (T, 2), products and agents, into at most `most` buckets with little padding.

    Markets are sorted by products, by agents and by their product in turn; for each order the best cuts are found by
    dynamic programming on the padded work ``sum T_b max J max I``, and the best order is taken. Returns the positions
    of each bucket's markets.
    """
    best_cost, best_groups = np.inf, [np.arange(len(sizes))]
    for keys in ((sizes[:, 1], sizes[:, 0]), (sizes[:, 0], sizes[:, 1]), (sizes.prod(axis=1),)):
        order = np.lexsort(keys)
        cost, cuts = _best_cuts(sizes[order], most)
        if cost < best_cost * (1 - 1e-12):
            best_cost, best_groups = cost, [np.sort(part) for part in np.split(order, cuts)]
    return best_groups


class _Places(NamedTuple):
    """Rows of a table, and the market and the column where each stands in a bucket of T markets."""

    rows: np.ndarray
    markets: np.ndarray
    columns: np.ndarray
    T: int


def _places(rows: Sequence[np.ndarray]) -> _Places:
    sizes = np.array([own.size for own in rows])
    markets = np.repeat(np.arange(len(rows)), sizes)
    columns = np.arange(markets.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return _Places(np.concatenate(rows), markets, columns, len(rows))


def _pad(values: np.ndarray, at: _Places, width: int) -> Array:
    padded = np.zeros((at.T, width, *values.shape[1:]))
    padded[at.markets, at.columns] = values[at.rows]
    return jax.device_put(padded)


def _pad_availability(values: np.ndarray | None, products: _Places, agents: _Places, J: int, width: int) -> Array:
    """Availability (T, J, 1), or (T, J, I) where it is specific to agents."""
    present = np.zeros((products.T, J, 1))
    present[products.markets, products.columns] = 1.0
    if values is None:
        return jax.device_put(present)
    padded = np.zeros((products.T, J, width))
    own = values[agents.rows, :J]
    sold = present[agents.markets, : own.shape[1], 0] > 0  # columns of other products may be missing
    padded[agents.markets, : own.shape[1], agents.columns] = np.where(sold, own, 0.0)
    return jax.device_put(padded)


def _pad_nests(codes: np.ndarray | None, at: _Places, J: int) -> dict[str, Any]:
    """Groups of each market, and the places of products' groups among them, of both levels; see `Bucket`."""
    if codes is None:
        return {}
    codes = codes[at.rows]
    places, groups, firsts = _distinct(codes[:, 0], at.markets, at.T)
    nests = np.full((at.T, J), -1)
    nests[at.markets, at.columns] = places
    found = {"nests": nests, "groups": groups}
    if codes.shape[1] > 1:
        # a group's own group is that of its first product
        markets = at.markets[firsts]
        above, found["outer"], _ = _distinct(codes[firsts, 1], markets, at.T)
        found["parents"] = np.full(groups.shape, -1)
        found["parents"][markets, places[firsts]] = above
    return {name: jax.device_put(values) for name, values in found.items()}


def _distinct(codes: np.ndarray, markets: np.ndarray, T: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places of codes (n,) among the distinct ones of their market, these (T, most), and where each is met first."""
    count = int(codes.max()) + 1
    known, firsts, inverse = np.unique(markets * count + codes, return_index=True, return_inverse=True)
    own, values = np.divmod(known, count)
    places = np.arange(own.size) - np.searchsorted(own, own)
    distinct = np.zeros((T, int(places.max()) + 1), int)
    distinct[own, places] = values
    return places[inverse.reshape(-1)], distinct, firsts


def _best_cuts(sizes: np.ndarray, most: int) -> tuple[float, list[int]]:
    """Penalised cost of the best contiguous groups of sorted sizes (T, 2), and where to cut."""
    starts = np.flatnonzero(np.r_[True, (sizes[1:] != sizes[:-1]).any(axis=1)])
    ends = np.r_[starts[1:], len(sizes)]
    if starts.size > 200:  # many distinct sizes: cutting at 200 of them is as good
        keep = np.linspace(0, starts.size - 1, 200).astype(int)
        starts, ends = starts[keep], np.r_[starts[keep][1:], len(sizes)]
    n = starts.size
    work = np.full((n, n), np.inf)  # of one group from piece a to piece b
    for a in range(n):
        largest = np.maximum.accumulate(sizes[starts[a] :], axis=0)[ends[a:] - 1 - starts[a]]
        work[a, a:] = (ends[a:] - starts[a]) * largest.prod(axis=1)
    total = sizes.prod(axis=1).sum()

    def wasted(padded: float) -> float:
        return (_WASTEFUL_WEIGHT - 1) * max(0.0, padded - _WASTEFUL * total - WORTHWHILE_PAIRS)

    cost = work[0].copy()
    cuts: list[list[int]] = [[] for _ in range(n)]
    best: tuple[float, list[int]] = (float(cost[-1] + wasted(cost[-1])), [])
    for k in range(2, min(most, n) + 1):
        options = cost[:-1, None] + work[1:, :]  # last group from piece a + 1 to piece b
        chosen = options.argmin(axis=0)
        cuts = [[*cuts[chosen[b]], int(starts[chosen[b] + 1])] for b in range(n)]
        cost = options[chosen, np.arange(n)]
        penalised = cost[-1] + wasted(cost[-1]) + (k - 1) * max(_WORTHWHILE * total, WORTHWHILE_PAIRS)
        if penalised < best[0]:
            best = (float(penalised), cuts[-1])
    return best
