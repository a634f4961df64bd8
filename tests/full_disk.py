"""A disk that is nearly full: writes fail in the system, as they do then, not in a function that a test replaced."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_room(beyond: int) -> Iterator[None]:
    """No file of this process can grow beyond so many bytes: writing fails with EFBIG, `File too large`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (beyond, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
