"""One thread for LAPACK's routines, which JAX calls from threads of its own on CPUs."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import scipy.linalg
from threadpoolctl import ThreadpoolController

#: Set to ``0`` to leave the number of LAPACK's threads alone.
VARIABLE = "BLPJAX_LAPACK_THREADS"

_limits: list[Any] = []


def limit_lapack_threads() -> None:
    """Have SciPy's OpenBLAS, whose LAPACK JAX calls on CPUs, use one thread.

    Its threads wait for each other in every step of a factorisation. For the matrices of one market that gains nothing
    on an idle machine, and where other programs run, or JAX's own threads, estimation took up to four times as long.
    NumPy has its own OpenBLAS where it was installed from a wheel, and keeps its threads.
    """
    if os.environ.get(VARIABLE) == "0" or _limits:
        return
    controller = ThreadpoolController()
    names = [info["filepath"] for info in controller.info() if info["internal_api"] == "openblas"]
    home = Path(scipy.linalg.__file__).parents[1]
    # wheels keep the library beside the package (Linux, Windows) or inside of it (macOS)
    packaged = [name for name in names if Path(name).is_relative_to(home) or Path(name).parent.name == "scipy.libs"]
    for name in packaged or names:
        _limits.append(controller.select(filepath=name).limit(limits=1))


@contextlib.contextmanager
def original_lapack_threads() -> Iterator[None]:
    """Context in which SciPy's OpenBLAS has as many threads as before `limit_lapack_threads`, for other libraries."""
    for limit in _limits:
        limit.restore_original_limits()
    try:
        yield
    finally:
        _limits.clear()
        limit_lapack_threads()
