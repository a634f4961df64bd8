"""Files that appear whole or not at all, also on a full disk."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def umask() -> int:
    """The permissions that this process takes away from new files; it can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write(temporary)` and move the result into place; a failure leaves the old file as it was.

    Raises:
        OSError: no room, or not writable. What numpy and torch raise on a full disk does not say so; it is told here.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    os.close(handle)
    try:
        write(Path(name))
        os.chmod(name, 0o666 & ~umask())
        os.replace(name, path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError | RuntimeError) and getattr(error, "errno", None) is None:
            raise OSError(f"{path} could not be written (is the disk full?): {error}") from error
        raise


def check_writable(path: Path) -> None:
    """Raises `OSError` unless a file could be written there: to be told before the work, not after it."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory; name a file in it")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{path} cannot be written: {parent} is no directory that you may write to")


def reserve(handle: int, size: int) -> None:
    """Take `size` bytes of the disk for an open file, where the system can: writing into a memory map of a file whose
    disk is full kills the process.

    Raises:
        OSError: no room.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, 0, size)
    else:
        os.ftruncate(handle, size)


def map_array(path: Path, dtype: np.dtype | type, shape: tuple[int, ...]) -> np.memmap:
    """A new `.npy` file as a memory map that can be written to; its room is taken at once.

    Raises:
        OSError: no room.
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    with path.open("r+b") as file:
        try:
            reserve(file.fileno(), path.stat().st_size)
        except OSError as error:
            path.unlink()
            raise OSError(error.errno, error.strerror, str(path)) from error
    return array
