"""What PyBLP's `parallel` becomes where all markets are computed together."""

import contextlib
from collections.abc import Iterator

from blpjax import options
from blpjax.values import check_integer, read_flag


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
    check_integer("processes", processes, minimum=1)
    read_flag("use_pathos", use_pathos)
    options.output(
        f"A pool of {processes} process{'es' * (processes > 1)} is not started: blpjax computes all markets together "
        "in one compiled program already."
    )
    yield
