"""Markets with more padding: places without products, agents without weight, and markets without products.

Such an economy has the same numbers wherever it has real products. It fits programs that were compiled for its larger
sizes, and devices that each take equally many markets. All arrays are on the host.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from blpjax.economy.buckets import Bucket, Economy
from blpjax.machine.sizes import coarse_size, pad_axes

#: What is small has at most so many numbers: its sizes are on a coarse grid.
SMALL = 2**14

#: Axes of each array of a bucket: markets, products, agents, groups, groups of these, and others.
_AXES = {
    "shares": "TJ",
    "X2": "TJ.",
    "availability": "TJI",
    "weights": "TI",
    "nodes": "TI.",
    "demographics": "TI.J",
    "nests": "TJ",
    "groups": "TH",
    "parents": "TH",
    "outer": "TG",
    "offsets": "TJI",
}

#: Arrays that belong to agents.
_AGENTS = ("weights", "nodes", "demographics")


class BucketSizes(NamedTuple):
    """Numbers of markets T, products J, agents I, groups H and groups G of groups that a bucket has place for.

    The last two are zero without such nests.
    """

    T: int
    J: int
    I: int  # noqa: E741 (the letter of the notation)
    H: int = 0
    G: int = 0


def bucket_sizes(bucket: Bucket) -> BucketSizes:
    """Sizes of a bucket."""
    nests = (bucket.groups, bucket.outer)
    return BucketSizes(*bucket.size, *(0 if codes is None else codes.shape[1] for codes in nests))


def coarse_sizes(economy: Economy) -> list[BucketSizes]:
    """Sizes on a coarse grid that have place for each bucket; few markets are not made many."""
    return [
        BucketSizes(
            T=coarse_size(T) if T > 8 else 1 << (T - 1).bit_length(),
            J=coarse_size(J, steps=1),
            I=coarse_size(I) if I > 1 else I,
            H=coarse_size(H) if H else H,
            G=coarse_size(G) if G else G,
        )
        for T, J, I, H, G in map(bucket_sizes, economy.buckets)  # noqa: E741
    ]


def coarse_economy(economy: Economy, sizes: Sequence[BucketSizes]) -> Economy:
    """The same markets in buckets of these sizes, and rows of no product: their number is on a coarse grid, too."""
    padded = pad_economy(economy, sizes)
    positions = pad_axes(padded.positions, (coarse_size(padded.positions.size, steps=1),), padded.padded_size)
    return dataclasses.replace(padded, positions=positions)


def pad_economy(economy: Economy, sizes: Sequence[BucketSizes]) -> Economy:
    """The same markets in buckets of other sizes, none of which is smaller.

    Added products have shares, availability and characteristics of zero, added agents weights of zero. Added markets
    have no products; their agents are those of the bucket's first market. `market_positions` ends with their places.
    """
    positions, sources, market_positions, added = economy.positions.copy(), [], economy.market_positions.copy(), []
    first = last = 0  # of the bucket's places, before and after
    first_market = last_market = 0
    for bucket, size in zip(economy.buckets, sizes, strict=True):
        T, J, _ = bucket.size
        here = (economy.positions >= first) & (economy.positions < first + T * J)
        t, j = np.divmod(economy.positions[here] - first, J)
        positions[here] = last + t * size.J + j
        shown = economy.sources[first : first + T * J].reshape(T, J)
        # a market's first place has its first row
        wide = np.concatenate([shown, np.repeat(shown[:, :1], size.J - J, axis=1)], axis=1)
        sources += [wide.reshape(-1), np.full((size.T - T) * size.J, shown[0, 0])]
        here = (economy.market_positions >= first_market) & (economy.market_positions < first_market + T)
        market_positions[here] += last_market - first_market
        added.append(np.arange(last_market + T, last_market + size.T))
        first, last = first + T * J, last + size.T * size.J
        first_market, last_market = first_market + T, last_market + size.T
    positions[economy.positions >= first] = last  # rows of no product
    buckets = tuple(pad_bucket(bucket, size) for bucket, size in zip(economy.buckets, sizes, strict=True))
    return Economy(buckets, positions, np.concatenate(sources), np.concatenate([market_positions, *added]))


def pad_bucket(bucket: Bucket, sizes: BucketSizes) -> Bucket:
    """A bucket with more padding, see `pad_economy`."""
    arrays: dict[str, Any] = {}
    T = bucket.size[0]
    for name, axes in _AXES.items():
        values = getattr(bucket, name)
        if values is None:
            continue
        shape = [
            size if axis == "." or (name == "availability" and axis == "I" and size == 1) else getattr(sizes, axis)
            for axis, size in zip(axes, values.shape, strict=False)
        ]
        padded = pad_axes(values, shape, -1 if name in ("nests", "parents") else 0)
        if name in _AGENTS:
            padded[T:] = padded[:1]
        arrays[name] = padded
    return dataclasses.replace(bucket, **arrays)
