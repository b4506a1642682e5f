"""What takes long says what it is doing."""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from blpjax import options

#: What takes longer than so many seconds is announced.
ANNOUNCED_AFTER = 2.0


@contextlib.contextmanager
def said(text: str) -> Iterator[None]:
    """Where something is done that may take long: then says the text, unless `blpjax.options.verbose` is off."""
    timer = threading.Timer(ANNOUNCED_AFTER, options.output, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def announced(what: str, shapes: Sequence[Any], kept: bool) -> contextlib.AbstractContextManager[None]:
    """Where a program is compiled: says so when it takes long.

    Parameters
    ----------
    what : is compiled.
    shapes : arrays, or anything else with a size, that the program takes.
    kept : whether the program is kept on disk.
    """
    longest = max((shape.size for shape in shapes), default=0)
    known = " It is kept for later calls and processes." if kept else ""
    return said(f"Compiling {what} for arrays of up to {longest:,} numbers ...{known}")
