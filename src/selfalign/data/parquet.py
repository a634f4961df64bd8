"""Reading parquet with errors that name the file."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

_DAMAGE = (pa.ArrowException, OSError, ValueError, TypeError, KeyError, IndexError, MemoryError, OverflowError)
"""What pyarrow raises over a broken file."""


class FrameFile:
    """Rows of one parquet file, read row group by row group.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the file is damaged, or lacks a column.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; the data set is incomplete")
        self.path, self.columns = path, list(columns)
        try:
            self._file = pq.ParquetFile(path, memory_map=True)
        except _DAMAGE as error:
            raise ValueError(f"{path} is damaged or cut off: {error}") from error
        missing = [name for name in self.columns if name not in self._file.schema_arrow.names]
        if missing:
            raise ValueError(f"{path} lacks the columns {', '.join(missing)} that the metadata promises")
        sizes = [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)]
        self._ends = np.cumsum(sizes)
        self._held: tuple[int, int, pa.Table] = (-1, -1, pa.table({}))

    def rows(self, start: int, length: int) -> pa.Table:
        """Rows [start, start + length).

        Raises:
            ValueError: the file has fewer rows, or is damaged.
        """
        if not len(self._ends) or start < 0 or start + length > self._ends[-1]:
            total = self._ends[-1] if len(self._ends) else 0
            raise ValueError(f"{self.path} has {total} rows, the metadata needs {start + length}; it is incomplete")
        first, last = np.searchsorted(self._ends, (start, start + length - 1), side="right")
        if self._held[:2] != (first, last):  # episodes that share a row group are read once
            self._held = (first, last, self._read(range(first, last + 1)))
        offset = start - (self._ends[first - 1] if first else 0)
        table = self._held[2].slice(offset, length)
        if len(table) != length:
            raise ValueError(f"{self.path} is damaged: rows {start} to {start + length - 1} cannot be read")
        return table

    def _read(self, groups: range) -> pa.Table:
        try:
            return self._file.read_row_groups(list(groups), columns=self.columns, use_threads=False)
        except _DAMAGE as error:
            raise ValueError(f"{self.path} is damaged: {error}") from error


def read_table(path: Path) -> pa.Table:
    """A whole (small) parquet file.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the file is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; the data set is incomplete")
    try:
        return pq.ParquetFile(path).read()
    except _DAMAGE as error:
        raise ValueError(f"{path} is damaged or cut off: {error}") from error
