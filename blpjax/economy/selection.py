"""Some markets of an economy, perhaps several times, as an economy of their own."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from blpjax.economy.buckets import Economy


class Selection(NamedTuple):
    """Markets of an economy.

    Attributes
    ----------
    economy : what consists of them.
    buckets, places : of which buckets its buckets are parts, and which of their markets they have.
    rows : (N',) which long rows of the original its long rows are.
    """

    economy: Economy
    buckets: tuple[int, ...]
    places: tuple[np.ndarray, ...]
    rows: np.ndarray


def select_markets(economy: Economy, rows: Sequence[np.ndarray], chosen: np.ndarray) -> Selection:
    """Markets at `chosen` positions in the sorted order of IDs, each once, with products in their order, on the host.

    `rows` are those of each market of the original.
    """
    long = np.sort(np.concatenate([rows[t] for t in chosen]))
    new_row = np.full(sum(part.size for part in rows), -1)
    new_row[long] = np.arange(long.size)
    old_places, sources = np.asarray(economy.market_positions)[chosen], np.asarray(economy.sources)
    positions, market_positions = np.zeros(long.size, int), np.zeros(chosen.size, int)
    buckets, places, shown, at, first, first_place = [], [], [], 0, 0, 0
    for b, bucket in enumerate(economy.buckets):
        T, J, _ = bucket.size
        mine = np.flatnonzero((old_places >= first) & (old_places < first + T))
        if mine.size:
            own = old_places[mine] - first
            buckets.append(b)
            places.append(own)
            shown.append(new_row[sources[first_place : first_place + T * J].reshape(T, J)[own]].reshape(-1))
            for k, t in enumerate(chosen[mine]):
                positions[new_row[rows[t]]] = at + k * J + np.arange(rows[t].size)
            market_positions[mine] = sum(part.size for part in places[:-1]) + np.arange(mine.size)
            at += mine.size * J
        first, first_place = first + T, first_place + T * J
    parts = [jax.tree.map(lambda leaf, p=p: leaf[p], economy.buckets[b]) for b, p in zip(buckets, places, strict=True)]
    made = Economy(tuple(parts), positions, np.concatenate(shown), market_positions)
    return Selection(made, tuple(buckets), tuple(places), long)


def repeat_markets(economy: Economy, bucket: int, places: np.ndarray) -> Selection:
    """Markets of one bucket at these places, in this order, of an economy on the host.

    All places of products are long rows, also those of padding, which show their market's first product: sizes depend
    on the number of markets alone.
    """
    T, J, _ = economy.buckets[bucket].size
    first = sum(part.size[0] * part.size[1] for part in economy.buckets[:bucket])
    rows = economy.sources[first : first + T * J].reshape(T, J)[places].reshape(-1)
    part = jax.tree.map(lambda leaf: leaf[places], economy.buckets[bucket])
    long = np.arange(rows.size)
    return Selection(Economy((part,), long, long, np.arange(places.size)), (bucket,), (places,), rows)
