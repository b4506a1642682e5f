"""What PyBLP's `parallel` becomes where all markets are computed together."""

import contextlib
import numbers
from collections.abc import Iterator

from blpjax import options


@contextlib.contextmanager
def parallel(processes: int, use_pathos: bool = False) -> Iterator[None]:
    """Context of PyBLP's scripts for parallel processing. It changes nothing, and says so.

    blpjax computes all markets together in one compiled program, which uses the cores of a CPU, or a GPU. A pool of
    processes would not make it faster.

    Parameters
    ----------
    processes : number of processes, at least one. None are started.
    use_pathos : what would have started them. Nothing has to be installed.

    Raises
    ------
    TypeError
        When `processes` is not an integer, or `use_pathos` not a boolean.
    ValueError
        When `processes` is not positive.
    """
    if isinstance(processes, bool) or not isinstance(processes, numbers.Integral):
        raise TypeError(f"processes must be an integer, not {processes!r}.")
    if processes < 1:
        raise ValueError(f"processes must be at least 1, not {processes}.")
    if not isinstance(use_pathos, bool):
        raise TypeError(f"use_pathos must be True or False, not {use_pathos!r}.")
    options.output(
        f"A pool of {processes} process{'es' * (processes > 1)} is not started: blpjax computes all markets together "
        "in one compiled program already."
    )
    yield
