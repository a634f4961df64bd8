"""`Ring`: the newest records, within a number of bytes, on disk.

    folder/000000000000.log   records 0 to 411
    folder/000000000412.log   records 412 to ...      named by their first record; the last one grows

Records are numbered from the first that was ever written. Where room is needed, the oldest file goes.
"""

import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfalign.online.records import MAGIC, OVERHEAD, RecordFile, read_records

log = logging.getLogger(__name__)
SEGMENTS = 8
"""Files that a full ring has, about: an eighth of it goes at once."""


@dataclass(frozen=True)
class Snapshot:
    """What a ring held at one moment. Records that are written later are not in it; those that are dropped later go."""

    segments: tuple[tuple[str, int, int], ...]
    """Path, number of the first record and bytes of each file."""

    def records(self, since: int = 0) -> Iterator[tuple[int, bytes]]:
        """(number, payload) from record `since` on, oldest first. A damaged file gives what is before the damage."""
        ends = [first for _, first, _ in self.segments[1:]]
        for (path, first, size), end in zip(self.segments, [*ends, None], strict=True):
            if end is not None and end <= since:
                continue
            number = first - 1
            try:
                for number, payload in enumerate(read_records(Path(path), size), first):
                    if number >= since:
                        yield number, payload
            except FileNotFoundError:
                continue  # dropped since
            except ValueError as error:
                log.warning("records are left out: %s", error)
            if end is not None and number + 1 < end:
                log.warning("%s is damaged: records %d to %d are lost", path, number + 1, end - 1)

    def to_list(self) -> list[list[Any]]:
        """JSON values."""
        return [list(segment) for segment in self.segments]

    @classmethod
    def from_list(cls, data: Sequence[Sequence[Any]]) -> "Snapshot":
        """The inverse of `to_list`."""
        return cls(tuple((str(path), int(first), int(size)) for path, first, size in data))


class Ring:
    """The newest records that fit into `max_bytes`; safe for threads, for one process at a time.

    Args:
        folder: made where needed.
        max_bytes: of all files together, never exceeded.

    Raises:
        ValueError: too few bytes.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path, max_bytes: int):
        self.folder, self.max_bytes = folder, max_bytes
        self._segment_bytes = max_bytes // SEGMENTS
        if self._segment_bytes < 4 * len(MAGIC):
            raise ValueError(f"a ring of {max_bytes} bytes has no room for records")
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._closed = [(path, int(path.stem), path.stat().st_size) for path in sorted(folder.glob("*.log"))]
        self._open = self._reopen()

    def _reopen(self) -> RecordFile:
        """The newest file, to go on with; a new one where there is none, or where it is of another kind."""
        if not self._closed:
            return RecordFile(self._path(0))
        path, self._first, _ = self._closed.pop()
        try:
            return RecordFile(path)
        except ValueError as error:
            log.warning("set aside: %s", error)
            path.rename(path.with_suffix(".damaged"))
            return RecordFile(self._path(self._first))

    def _path(self, first: int) -> Path:
        self._first = first
        return self.folder / f"{first:012d}.log"

    @property
    def end(self) -> int:
        """The number that the next record gets."""
        with self._lock:
            return self._first + self._open.records

    @property
    def start(self) -> int:
        """The number of the oldest record that is still there."""
        with self._lock:
            return self._closed[0][1] if self._closed else self._first

    @property
    def size(self) -> int:
        """Bytes of all files."""
        with self._lock:
            return sum(size for _, _, size in self._closed) + self._open.size

    def append(self, payload: bytes) -> int:
        """Writes a record and returns its number.

        Raises:
            ValueError: it alone is larger than an eighth of the ring.
            OSError: no room on the disk, or not writable; everything is as it was.
        """
        needed = OVERHEAD + len(payload)
        if needed > self._segment_bytes - len(MAGIC):
            raise ValueError(f"a record of {needed} bytes is too large for a ring of {self.max_bytes}; enlarge it")
        with self._lock:
            if self._open.size + needed > self._segment_bytes:
                self._next_file()
            while self.size + needed > self.max_bytes:
                path, _, _ = self._closed.pop(0)
                path.unlink(missing_ok=True)
            self._open.append(payload)
            return self.end - 1

    def _next_file(self) -> None:
        """A full file is flushed to the disk, and the next one begins."""
        full, first, end = self._open, self._first, self.end
        full.sync()
        try:
            self._open = RecordFile(self._path(end))
        except OSError:
            self._first = first
            raise
        full.close()
        self._closed.append((full.path, first, full.size))

    def snapshot(self) -> Snapshot:
        """Everything that is in the ring now, readable by other processes."""
        with self._lock:
            segments = [*self._closed, (self._open.path, self._first, self._open.size)]
            return Snapshot(tuple((str(path), first, size) for path, first, size in segments))

    def close(self) -> None:
        with self._lock:
            self._open.sync()
            self._open.close()
