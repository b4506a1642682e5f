"""How estimations that have nothing to do with each other are spread over the cores or devices of a machine."""

import os
import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from blpjax.machine.placement import Placement, build_placement

#: Lanes that a core, or a device that is a CPU, takes at a time: pieces of a batch are spread more evenly than halves.
LARGEST_PIECE = 32

_begun: set[Hashable] = set()
_locks: dict[Hashable, threading.Lock] = {}


def one_by_one() -> bool:
    """Whether lanes are worked on one after the other: on CPUs.

    There wide arrays save nothing, a slow lane would hold up the others, and batched factorisations of small matrices
    block each other.
    """
    return jax.default_backend() == "cpu"


def each_lane(function: Callable[..., Any], *trees: Any, placement: Placement | None = None) -> Any:
    """Apply a function to every lane, a leading axis of all arrays: vectorised, or `one_by_one`.

    With a placement each of its devices has its own lanes, and waits for no other device's.
    """

    def here(*own: Any) -> Any:
        if one_by_one():
            return jax.lax.map(lambda arguments: function(*arguments), own)
        return jax.vmap(function)(*own)

    return here(*trees) if placement is None else placement.on_each(here, *trees)


def spread(
    work: Callable[[np.ndarray, Placement | None], Any],
    size: int,
    devices: Sequence[jax.Device] | None = None,
    key: Hashable = None,
) -> Any:
    """Outcome of ``work(lanes, placement)`` for lanes 0 to `size` - 1, put together from pieces.

    Parameters
    ----------
    work : function of numbers (B,) of lanes, and of the devices that they are spread over if there are several; B is a
        multiple of their number. It returns a tree of arrays whose first axis is that of lanes. Where a CPU is the only
        device it runs in a thread for each core. Some lanes may be asked for twice.
    size : number of lanes.
    devices : where lanes are worked on, by default all devices of this process.
    key : what decides which programs are compiled. Where there are threads the first piece runs alone, so that they
        are compiled once.
    """
    chosen = list(jax.local_devices() if devices is None else devices)
    placement = build_placement(chosen) if len(chosen) > 1 else None
    threads = min(_cores(), size) if placement is None and chosen[0].platform == "cpu" else 1
    together = threads if placement is None else placement.size
    count = -(-size // (together * LARGEST_PIECE)) if chosen[0].platform == "cpu" else 1
    width = -(-size // (together * count))
    if placement is not None:
        width *= placement.size
    pieces = [np.arange(first, first + width) % size for first in range(0, size, width)]

    def run(lanes: np.ndarray) -> Any:
        with jax.default_device(chosen[0]):
            return jax.device_get(work(lanes, placement))

    if threads == 1:
        found = [run(lanes) for lanes in pieces]
    else:
        pool = ThreadPoolExecutor(threads)
        try:
            found = list(pool.map(lambda lanes: _first_alone((key, chosen[0], width), lambda: run(lanes)), pieces))
        finally:
            pool.shutdown(cancel_futures=True)
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:size], *found)


def _first_alone(key: Hashable, call: Callable[[], Any]) -> Any:
    if key not in _begun:
        with _locks.setdefault(key, threading.Lock()):  # one lock for all threads, unlike that of a defaultdict
            if key not in _begun:
                found = call()
                _begun.add(key)
                return found
    return call()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
