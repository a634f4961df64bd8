"""Damage to data sets: that of any folder, and that of tables."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from damage import Damage, change_json, exchange, flip_bits, overwrite, pick, remove, truncate


def _edit_table(root: Path, rng: np.random.Generator, change: Callable[[pa.Table], tuple[pa.Table, str]]) -> str:
    path = pick(root, rng, "*.parquet")
    table, what = change(pq.read_table(path))
    pq.write_table(table, path)
    return f"{path.name}: {what}"


def swap_columns(root: Path, rng: np.random.Generator) -> str:
    def change(table: pa.Table) -> tuple[pa.Table, str]:
        same = [[n for n in table.column_names if table.schema.field(n).type == f.type] for f in table.schema]
        names = max(same, key=len) if rng.random() < 0.5 else same[rng.integers(len(same))]
        a, b = (names[i] for i in rng.integers(len(names), size=2))
        return table.rename_columns([{a: b, b: a}.get(n, n) for n in table.column_names]), f"{a} and {b} swapped"

    return _edit_table(root, rng, change)


def change_type(root: Path, rng: np.random.Generator) -> str:
    def change(table: pa.Table) -> tuple[pa.Table, str]:
        index = int(rng.integers(table.num_columns))
        name, column = table.column_names[index], table.column(index)
        to = (str, float, int, bool)[rng.integers(4)]

        def convert(value):
            if isinstance(value, list):
                return [convert(v) for v in value]
            try:
                return to(value)
            except (TypeError, ValueError):
                return None

        values = pa.array([convert(v) for v in column.to_pylist()])
        return table.set_column(index, name, values), f"{name} as {to.__name__}"

    return _edit_table(root, rng, change)


def change_rows(root: Path, rng: np.random.Generator) -> str:
    def change(table: pa.Table) -> tuple[pa.Table, str]:
        how = ("drop", "repeat", "shuffle", "empty")[rng.integers(4)]
        rows = np.arange(len(table))
        row = rng.integers(len(table))
        chosen = {
            "drop": np.delete(rows, row),
            "repeat": np.insert(rows, row, row),
            "shuffle": rng.permutation(rows),
            "empty": rows[:0],
        }[how]
        return table.take(pa.array(chosen)), f"{how} row {row}"

    return _edit_table(root, rng, change)


def drop_column(root: Path, rng: np.random.Generator) -> str:
    def change(table: pa.Table) -> tuple[pa.Table, str]:
        name = table.column_names[rng.integers(table.num_columns)]
        return table.drop_columns([name]), f"without {name}"

    return _edit_table(root, rng, change)


KINDS: tuple[Damage, ...] = (
    truncate, flip_bits, overwrite, remove, partial(exchange, alike=True),
    swap_columns, change_type, change_rows, drop_column, change_json,
)  # fmt: skip
