"""Kills a forked copy of this process at a chosen point of some work, as `kill -9` does."""

import os
import resource
import signal
import sys
from collections.abc import Callable


def _forked(work: Callable[[], None]) -> bool:
    """Runs work in a fork; whether it came to its end (False: it was killed)."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            sys.__stderr__.write(f"{error!r}\n")
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the work failed before it was killed"
    return not os.WIFSIGNALED(status)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_after_bytes(count: int, work: Callable[[], None]) -> bool:
    """Runs work that is killed when it has written `count` bytes with `os.pwrite`; whether it came to its end."""

    def limited() -> None:
        real, left = os.pwrite, [count]

        def pwrite(handle: int, data: bytes, place: int) -> int:
            if len(data) >= left[0]:
                real(handle, data[: left[0]], place)
                _die()
            left[0] -= len(data)
            return real(handle, data, place)

        os.pwrite = pwrite
        work()

    return _forked(limited)


def killed_beyond(size: int, work: Callable[[], None]) -> bool:
    """Runs work that the system kills when one of its files would grow beyond `size` bytes, whichever code writes it;
    whether it came to its end. What was written up to there is in the file."""

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        work()

    return _forked(limited)


def killed_after_lines(count: int, work: Callable[[], None]) -> bool:
    """Runs work that is killed before its `count`-th line of Python, in any module; whether it came to its end."""

    def traced() -> None:
        left = [count]

        def trace(frame, event, arg):
            if event == "line":
                left[0] -= 1
                if left[0] <= 0:
                    _die()
            return trace

        sys.settrace(trace)
        work()
        sys.settrace(None)

    return _forked(traced)
