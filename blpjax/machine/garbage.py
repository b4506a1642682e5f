"""When Python looks for garbage: not while it makes many objects that stay."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected(lasting: bool = False) -> Iterator[None]:
    """Where nothing of many small objects is garbage, and looking for some takes a fifth of the time.

    Objects that are `lasting`, such as modules, are then old ones, which are looked through least often.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            if lasting and not gc.get_freeze_count():  # frozen and thawed, all objects belong to the oldest generation
                gc.freeze()
                gc.unfreeze()
            gc.enable()
