"""What takes long says what it is doing."""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from blpjax import options

#: Compilation of a program is announced when it takes longer than so many seconds.
ANNOUNCED_AFTER = 2.0


@contextlib.contextmanager
def announced(what: str, shapes: Sequence[Any], kept: bool) -> Iterator[None]:
    """Where a program is compiled: says so when it takes long, unless `blpjax.options.verbose` is off.

    Parameters
    ----------
    what : is compiled.
    shapes : arrays, or anything else with a size, that the program takes.
    kept : whether the program is kept on disk.
    """
    longest = max((shape.size for shape in shapes), default=0)
    known = " It is kept for later calls and processes." if kept else ""
    text = f"Compiling {what} for arrays of up to {longest:,} numbers ...{known}"
    timer = threading.Timer(ANNOUNCED_AFTER, options.output, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
