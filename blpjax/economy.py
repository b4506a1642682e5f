"""The data of an economy as arrays that compiled programs read: markets padded into a few size buckets.

A padded product has a share and an availability of zero and characteristics of zero; a padded agent has a weight of
zero. Vectors over products exist in two layouts: *long*, one element for each row of the user's product table, and
*padded*, the buckets' (T, J) arrays laid end to end. `Economy.gather` turns padded into long, `Economy.scatter` long
into padded.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from blpjax.inputs.tables import AgentTable

MAX_BUCKETS = 4
#: Another bucket, and so another part in every compiled program, has to save this share of the padded work.
_WORTHWHILE = 0.1


class Bucket(eqx.Module):
    """Markets of similar size: T markets of at most J products and I agents."""

    shares: Float[Array, "T J"]
    X2: Float[Array, "T J K2"]
    availability: Float[Array, "T J #I"]
    weights: Float[Array, "T I"]
    nodes: Float[Array, "T I R"]
    demographics: Float[Array, "T I D"]

    @property
    def size(self) -> tuple[int, int, int]:
        """Numbers of markets, products and agents (T, J, I)."""
        return (self.shares.shape[0], self.shares.shape[1], self.weights.shape[1])


class Economy(eqx.Module):
    """All markets of a problem.

    `positions` (N,) says where each long row stands in the padded layout, `market_positions` (T,) where each market, in
    the sorted order of its IDs, stands among the buckets' markets laid end to end.
    """

    buckets: tuple[Bucket, ...]
    positions: Int[Array, " N"]
    market_positions: Int[Array, " T"]

    @property
    def padded_size(self) -> int:
        """Number of product places, padding included."""
        return sum(bucket.shares.size for bucket in self.buckets)

    def gather(self, parts: Sequence[Array]) -> Array:
        """Long rows (N, ...) of arrays (T, J, ...), one for each bucket."""
        flat = [part.reshape(part.shape[0] * part.shape[1], *part.shape[2:]) for part in parts]
        return jnp.concatenate(flat)[self.positions]

    def scatter(self, values: Array) -> tuple[Array, ...]:
        """Arrays (T, J, ...), one for each bucket, of long rows (N, ...). Padding is zero."""
        flat = jnp.zeros((self.padded_size, *values.shape[1:]), values.dtype).at[self.positions].set(values)
        parts, at = [], 0
        for bucket in self.buckets:
            T, J, _ = bucket.size
            parts.append(flat[at : at + T * J].reshape(T, J, *values.shape[1:]))
            at += T * J
        return tuple(parts)

    def gather_markets(self, parts: Sequence[Array]) -> Array:
        """Values by market (T, ...) in the sorted order of market IDs, from one array (T_b, ...) for each bucket."""
        return jnp.concatenate(parts)[self.market_positions]


class MarketIndex(NamedTuple):
    """Which rows belong to which market: IDs in sorted order, and for each the rows of a table in the table's order."""

    ids: np.ndarray
    rows: tuple[np.ndarray, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class AgentsInEconomy:
    """Checked agent data, their demographics (I, D) with labels, and the economy they live in.

    `counts` are numbers of agents by market, in the sorted order of market IDs.
    """

    table: AgentTable
    demographics: np.ndarray
    demographic_labels: tuple[str, ...]
    economy: Economy
    counts: tuple[int, ...]


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
) -> Economy:
    """Pad the long arrays of a problem into buckets.

    Parameters
    ----------
    products, agents : rows of each market in the two tables, over the same IDs.
    shares : (N,) market shares; X2 : (N, K2) characteristics.
    weights, nodes, demographics : (I,), (I, R) and (I, D) rows of the agent table.
    """
    sizes = np.array([(p.size, a.size) for p, a in zip(products.rows, agents.rows, strict=True)])
    groups = bucket_markets(sizes)
    buckets, positions, at = [], np.zeros(shares.size, int), 0
    for group in groups:
        J, width = sizes[group].max(axis=0).tolist()
        rows = [products.rows[t] for t in group]
        people = [agents.rows[t] for t in group]
        for i, r in enumerate(rows):
            positions[r] = at + i * J + np.arange(r.size)
        at += len(group) * J
        buckets.append(
            Bucket(
                shares=_pad(shares, rows, J),
                X2=_pad(X2, rows, J),
                availability=_pad(np.ones((shares.size, 1)), rows, J),
                weights=_pad(weights, people, width),
                nodes=_pad(nodes, people, width),
                demographics=_pad(demographics, people, width),
            )
        )
    market_positions = np.argsort(np.concatenate(groups))
    return Economy(tuple(buckets), jax.device_put(positions), jax.device_put(market_positions))


def _pad(values: np.ndarray, rows: Sequence[np.ndarray], width: int) -> Array:
    padded = np.zeros((len(rows), width, *values.shape[1:]))
    for i, r in enumerate(rows):
        padded[i, : r.size] = values[r]
    return jax.device_put(padded)


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
    cost = work[0].copy()
    cuts: list[list[int]] = [[] for _ in range(n)]
    best: tuple[float, list[int]] = (float(cost[-1]), [])
    for k in range(2, min(most, n) + 1):
        options = cost[:-1, None] + work[1:, :]  # last group from piece a + 1 to piece b
        chosen = options.argmin(axis=0)
        cuts = [[*cuts[chosen[b]], int(starts[chosen[b] + 1])] for b in range(n)]
        cost = options[chosen, np.arange(n)]
        penalised = cost[-1] + (k - 1) * _WORTHWHILE * total
        if penalised < best[0]:
            best = (float(penalised), cuts[-1])
    return best
