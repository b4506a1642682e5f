"""Interrupts from the keyboard that wait: raised while XLA works they would be lost, or leave it in pieces.

JAX's callbacks of the garbage collector and of weak references swallow `KeyboardInterrupt`, and processes whose traces
or compilations were cut short may crash when they exit.
"""

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any


class WaitingInterrupts:
    """A context in which interrupts from the keyboard wait. At its end they go where they would have gone.

    Parameters
    ----------
    before : called before that.

    Notes
    -----
    Only the main thread is ever interrupted; elsewhere, inside of another such context, and where another program than
    Python handles interrupts, nothing changes.
    """

    def __init__(self, before: Callable[[], Any]) -> None:
        self._before = before
        self._handler: Any = None
        self.interrupted = False

    def __enter__(self) -> "WaitingInterrupts":
        if threading.get_ident() == threading.main_thread().ident:
            handler = signal.getsignal(signal.SIGINT)
            if callable(handler) and not isinstance(getattr(handler, "__self__", None), WaitingInterrupts):
                self._handler = handler
                signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._handler is None:
            return
        signal.signal(signal.SIGINT, self._handler)
        if self.interrupted:
            self._before()
            signal.raise_signal(signal.SIGINT)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = True
