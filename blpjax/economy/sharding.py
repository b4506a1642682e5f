"""Spread the markets of an economy over devices."""

import dataclasses

import jax
import numpy as np

from blpjax.economy.buckets import Bucket, Economy
from blpjax.machine.placement import Placement

#: Arrays of a bucket that belong to agents. The others belong to products.
_AGENTS = ("weights", "nodes", "demographics")


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
    buckets = []
    first = last = 0  # of the bucket's places, before and after
    first_market = last_market = 0
    positions, market_positions = host.positions.copy(), host.market_positions.copy()
    sources: list[np.ndarray] = []
    for bucket in host.buckets:
        T, J, _ = bucket.size
        more = -T % placement.size
        here = slice(first, first + T * J)
        positions[(host.positions >= here.start) & (host.positions < here.stop)] += last - first
        sources += [host.sources[here], np.full(more * J, host.sources[first])]
        in_bucket = (host.market_positions >= first_market) & (host.market_positions < first_market + T)
        market_positions[in_bucket] += last_market - first_market
        first, last = first + T * J, last + (T + more) * J
        first_market, last_market = first_market + T, last_market + T + more
        buckets.append(_shard_bucket(bucket, more, placement))
    long = (positions, np.concatenate(sources), market_positions)
    return Economy(tuple(buckets), *map(placement.repeat, long))


def _check_same(host: Economy, placement: Placement) -> None:
    agents = [[getattr(bucket, name) for name in _AGENTS] for bucket in host.buckets]
    products = [[bucket.shares, bucket.X2, bucket.availability, bucket.nests, bucket.groups] for bucket in host.buckets]
    placement.check_same({"products": (host.positions, products), "agents": agents})


def _shard_bucket(bucket: Bucket, more: int, placement: Placement) -> Bucket:
    """A bucket of host arrays on devices, with so many more markets."""
    arrays = {}
    for field in dataclasses.fields(bucket):
        values = getattr(bucket, field.name)
        if not isinstance(values, np.ndarray):
            continue
        if field.name in _AGENTS:
            padding = np.repeat(values[:1], more, axis=0)
        else:
            padding = np.full((more, *values.shape[1:]), -1 if field.name == "nests" else 0, values.dtype)
        arrays[field.name] = placement.spread(np.concatenate([values, padding]))
    return Bucket(**arrays, placement=placement)
