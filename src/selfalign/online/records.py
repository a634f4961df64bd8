"""A file of records that can only grow, and that is whole after a crash at any byte.

    file     "SALOG001" record record ...
    record   length (4 bytes) | CRC-32 of length and payload (4 bytes) | payload          little-endian

A record counts once all of its bytes are there. What a killed process left of its last one is cut off at opening.
"""

import contextlib
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

MAGIC = b"SALOG001"
_HEAD = struct.Struct("<II")
OVERHEAD = _HEAD.size
"""Bytes of a record beside its payload."""


def framed(payload: bytes) -> bytes:
    """A payload as it stands in the file."""
    length = struct.pack("<I", len(payload))
    return _HEAD.pack(len(payload), zlib.crc32(payload, zlib.crc32(length))) + payload


def read_records(path: Path, size: int | None = None) -> Iterator[bytes]:
    """Payloads in the order in which they were written, up to the first that is not whole.

    Args:
        size: read no further than so many bytes; None: to the end.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no file of records.
    """
    with path.open("rb") as file:
        _check_magic(path, file.read(len(MAGIC)))
        yield from _payloads(file, os.fstat(file.fileno()).st_size if size is None else size)


def _check_magic(path: Path, start: bytes) -> None:
    if start != MAGIC:
        raise ValueError(f"{path} is no file of records: it begins with {start!r}; move it away, or restore a copy")


def _payloads(file: BinaryIO, size: int) -> Iterator[bytes]:
    left = size - len(MAGIC)
    while left >= OVERHEAD:
        length, crc = _HEAD.unpack(file.read(OVERHEAD).ljust(OVERHEAD, b"\0"))
        if length > left - OVERHEAD:
            return
        payload = file.read(length)
        if len(payload) != length or zlib.crc32(payload, zlib.crc32(struct.pack("<I", length))) != crc:
            return
        left -= OVERHEAD + length
        yield payload


class RecordFile:
    """A file of records that is open for appending; one process at a time.

    Opening makes it where needed and cuts off what is not whole at its end. A record is written at once, so a process
    that is killed loses at most the one that it was writing; `sync` saves them from a loss of power, too.

    Raises:
        ValueError: the file is of another kind.
        OSError: not writable.
    """

    def __init__(self, path: Path):
        self.path, self.records, self.size = path, 0, len(MAGIC)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._recover()
        except BaseException:
            os.close(self._handle)
            raise

    def _recover(self) -> None:
        start = os.pread(self._handle, len(MAGIC), 0)
        if len(start) < len(MAGIC) and MAGIC.startswith(start):  # new, or killed while it was made
            self._write(MAGIC, 0)
        with self.path.open("rb") as file:
            _check_magic(self.path, file.read(len(MAGIC)))
            for payload in _payloads(file, os.fstat(file.fileno()).st_size):
                self.records += 1
                self.size += OVERHEAD + len(payload)
        os.ftruncate(self._handle, self.size)

    def append(self, payload: bytes) -> None:
        """Writes a record.

        Raises:
            OSError: no room; the file is as it was.
        """
        record = framed(payload)
        try:
            self._write(record, self.size)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._handle, self.size)
            raise
        self.records += 1
        self.size += len(record)

    def _write(self, data: bytes, place: int) -> None:
        written = 0
        while written < len(data):
            written += os.pwrite(self._handle, data[written:], place + written)

    def sync(self) -> None:
        """Returns when everything is on the disk."""
        os.fsync(self._handle)

    def close(self) -> None:
        os.close(self._handle)
