"""The only place that maps kernels, which see one market, over the markets of an economy."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from blpjax.economy.buckets import Bucket

#: Markets are processed in chunks of at most this many product-agent pairs (32 MiB for each such array).
CHUNK_ELEMENTS = 2**22


def loop_elements() -> int:
    """How many product-agent pairs go into a chunk of loops that may take very different numbers of steps.

    A chunk takes as many steps as its slowest market. On CPUs large chunks save nothing that would make up for it.
    """
    return 2**16 if jax.default_backend() == "cpu" else CHUNK_ELEMENTS


def cached_elements() -> int:
    """How many product-agent pairs go into a chunk of long formulas: on CPUs their arrays then stay in the cache."""
    return 2**15 if jax.default_backend() == "cpu" else CHUNK_ELEMENTS


def map_directions(pairs: int, directions: int) -> Callable[[Callable[..., Any], Any], Any]:
    """What maps a function of one market with so many product-agent pairs over directions: all at a time, or in turn.

    On CPUs they come one after the other where arrays of all would not stay in the cache.
    """
    return _all_at_once if pairs * directions <= cached_elements() else jax.lax.map


def _all_at_once(function: Callable[..., Any], values: Any) -> Any:
    return jax.vmap(function)(values)


def map_markets(kernel: Callable[..., Any], bucket: Bucket, *arguments: Any, elements: int | None = None) -> Any:
    """Apply ``kernel(bucket_of_one_market, *arguments_of_one_market)`` to all markets of a bucket.

    Markets are vectorised in chunks of at most so many product-agent pairs, by default `CHUNK_ELEMENTS`, so that memory
    stays bounded whatever their number. Where markets are spread over devices, each device maps its own. On the host
    the kernel is called once, with the arrays of all markets (`blpjax.kernels.arrays`).
    """
    if bucket.placement is not None:

        def on_device(own: Bucket, *values: Any) -> Any:
            return map_markets(kernel, dataclasses.replace(own, placement=None), *values, elements=elements)

        return bucket.placement.on_each(on_device, bucket, *arguments)
    if isinstance(bucket.weights, np.ndarray):
        return kernel(bucket, *arguments)
    T, J, width = bucket.size
    chunk = max(1, (CHUNK_ELEMENTS if elements is None else elements) // max(J * width, 1))
    if chunk >= T:
        return jax.vmap(kernel)(bucket, *arguments)
    everything = (bucket, *arguments)
    if chunk == 1:  # without an axis of markets the program is smaller than for chunks of one
        return jax.lax.map(lambda one: kernel(*one), everything)
    # chunks of equal size, for which some markets are done twice: what is left over would be a second program
    rounds = -(-T // chunk)
    chunk = -(-T // rounds)
    places = jnp.arange(rounds * chunk) % T
    stacked = jax.tree.map(lambda leaf: leaf[places].reshape(rounds, chunk, *leaf.shape[1:]), everything)
    found = jax.lax.map(lambda several: jax.vmap(kernel)(*several), stacked)
    return jax.tree.map(lambda leaf: leaf.reshape(rounds * chunk, *leaf.shape[2:])[:T], found)
