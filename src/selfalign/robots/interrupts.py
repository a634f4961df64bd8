"""`Interrupts`: Ctrl-C and SIGTERM where they may come, and nowhere else."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_TOLD = "the recording was interrupted"


class Interrupts:
    """Within it, both signals are `KeyboardInterrupt` where they are heeded, and wait everywhere else.

    The first one ends heeding, so that a second one does not interrupt what the first has set going: telling a robot to
    stop, closing files. Threads other than the main one get no signals; there it does nothing.
    """

    def __init__(self) -> None:
        self._asked = self._heeding = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def heeded(self) -> Iterator[None]:
        """Here they may come; one that has been waiting comes at once."""
        self._heeding = True
        try:
            if self._asked:
                raise KeyboardInterrupt(_TOLD)
            yield
        finally:
            self._heeding = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        if self._heeding:
            self._heeding = False
            raise KeyboardInterrupt(_TOLD)
