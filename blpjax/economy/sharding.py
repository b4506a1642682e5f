"""Spread the markets of an economy over devices."""

import dataclasses

import jax
import numpy as np

from blpjax.economy.buckets import Economy
from blpjax.economy.padding import bucket_sizes, pad_economy
from blpjax.machine.placement import Placement


def shard_economy(economy: Economy, placement: Placement) -> Economy:
    """The same markets, each on one device.

    Each bucket is filled up with markets without products to a multiple of the number of devices. Their agents are
    those of the bucket's first market. No long vector has rows of them, so they are in no output.

    Raises
    ------
    DataError
        When processes do not have the same economies.
    """
    host = jax.tree.map(np.asarray, economy)
    _check_same(host, placement)
    sizes = [bucket_sizes(bucket) for bucket in host.buckets]
    padded = pad_economy(host, [size._replace(T=-(-size.T // placement.size) * placement.size) for size in sizes])
    buckets = [
        dataclasses.replace(jax.tree.map(placement.spread, bucket), placement=placement) for bucket in padded.buckets
    ]
    long = (padded.positions, padded.sources, padded.market_positions[: host.market_positions.size])
    return Economy(tuple(buckets), *map(placement.repeat, long))


def _check_same(host: Economy, placement: Placement) -> None:
    agents = [[bucket.weights, bucket.nodes, bucket.demographics] for bucket in host.buckets]
    names = ("shares", "X2", "availability", "nests", "groups", "parents", "outer")
    products = [[getattr(bucket, name) for name in names] for bucket in host.buckets]
    placement.check_same({"products": (host.positions, products), "agents": agents})
