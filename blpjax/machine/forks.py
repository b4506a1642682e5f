"""Processes that were forked after JAX was used: JAX's threads are missing there, and computations would never end."""

import os

from blpjax.exceptions import ForkError

_state = {"used": False, "forked": False}


def check_process() -> None:
    """Take note that this process uses JAX.

    Raises
    ------
    ForkError
        When it was forked from a process that did.
    """
    if _state["forked"]:
        raise ForkError(
            "This process was forked from one in which blpjax had computed something. JAX's threads are missing here, "
            "so that computations would never end. Spawn processes instead: multiprocessing.get_context('spawn').Pool, "
            "ProcessPoolExecutor(mp_context=multiprocessing.get_context('spawn')), or "
            "multiprocessing.set_start_method('spawn') at the top of a script."
        )
    _state["used"] = True


def _note_fork() -> None:
    _state["forked"] = _state["used"]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)
