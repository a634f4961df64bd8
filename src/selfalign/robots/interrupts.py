"""`Interrupts`: Ctrl-C, SIGTERM and a lost terminal where they may come, and nowhere else."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Self

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_TOLD = "the recording was interrupted"


class Interrupts:
    """Within it, these signals are `KeyboardInterrupt` where they are heeded, and wait everywhere else.

    The first one ends heeding, so that a second one does not interrupt what the first has set going: telling a robot to
    stop, closing files. Threads other than the main one get no signals; there it does nothing. Under `nohup` a lost
    terminal stays ignored.
    """

    def __init__(self) -> None:
        self._heeding = False
        self._waiting: tuple[int, FrameType | None] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            taken = [number for number in _SIGNALS if self._takes(number, signal.getsignal(number))]
            self._before = {number: signal.signal(number, self._handle) for number in taken}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def heeded(self) -> Iterator[None]:
        """Here they may come; one that has been waiting comes at once."""
        self._heeding = True
        try:
            if self._waiting is not None:
                self._handle(*self._waiting)
            yield
        finally:
            self._heeding = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._heeding:
            self._heeding = False
            self._come(number, frame)
        else:
            self._waiting = number, frame

    def _takes(self, number: int, handler: Callable[..., Any] | int | None) -> bool:
        return number != getattr(signal, "SIGHUP", None) or handler != signal.SIG_IGN

    def _come(self, number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(_TOLD)


class Postponed(Interrupts):
    """As `Interrupts`, but signals go to whoever was to get them before: those that are heeded at once, one that waits
    in the end (not after an error, which ends the program by itself, and says more)."""

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        super().__exit__()
        if error is None and self._waiting is not None:
            self._come(*self._waiting)

    def _takes(self, number: int, handler: Callable[..., Any] | int | None) -> bool:
        return callable(handler)

    def _come(self, number: int, frame: FrameType | None) -> None:
        self._before[number](number, frame)
