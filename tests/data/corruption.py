"""Seeded ways to damage a data set on disk."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

Damage = Callable[[Path, np.random.Generator], str]
"""Changes the data set at a path; returns what it did."""


def damage(root: Path, seed: int) -> str:
    """Damages the data set in one way; the same seed does the same."""
    rng = np.random.default_rng(seed)
    return KINDS[seed % len(KINDS)](root, rng)


def _pick(root: Path, rng: np.random.Generator, *suffixes: str) -> Path:
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.suffix in (suffixes or (path.suffix,)))
    return files[rng.integers(len(files))]


def truncate(root: Path, rng: np.random.Generator) -> str:
    path = _pick(root, rng)
    data = path.read_bytes()
    keep = int(rng.integers(len(data)))
    path.write_bytes(data[:keep])
    return f"{path.name} cut to {keep} of {len(data)} bytes"


def flip_bits(root: Path, rng: np.random.Generator) -> str:
    path, count = _pick(root, rng), int(rng.integers(1, 5))
    data = bytearray(path.read_bytes())
    for position in rng.integers(len(data), size=count):
        data[position] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)
    return f"{count} bits of {path.name}"


def overwrite(root: Path, rng: np.random.Generator) -> str:
    path = _pick(root, rng)
    data = bytearray(path.read_bytes())
    start = int(rng.integers(len(data)))
    end = min(len(data), start + int(rng.integers(1, 200)))
    data[start:end] = rng.bytes(end - start)
    path.write_bytes(data)
    return f"bytes {start} to {end} of {path.name}"


def remove(root: Path, rng: np.random.Generator) -> str:
    path = _pick(root, rng)
    path.unlink()
    return f"{path.name} removed"


def exchange(root: Path, rng: np.random.Generator) -> str:
    """Two files of a kind change places."""
    first = _pick(root, rng)
    second = _pick(root, rng, first.suffix)
    data, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(data)
    return f"{first} and {second} exchanged"


def _edit_table(root: Path, rng: np.random.Generator, change: Callable[[pa.Table], tuple[pa.Table, str]]) -> str:
    path = _pick(root, rng, ".parquet")
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


def change_json(root: Path, rng: np.random.Generator) -> str:
    """One value of a JSON file becomes another kind of thing."""
    path = _pick(root, rng, ".json", ".jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.suffix == ".jsonl" else None
    value = json.loads(path.read_text()) if rows is None else rows
    places: list[tuple] = []

    def walk(node) -> None:
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            places.append((node, key))
            if isinstance(child, dict | list):
                walk(child)

    walk(value)
    node, key = places[rng.integers(len(places))]
    new = (None, -1, 1e300, "x", [], {}, 10**30, True)[rng.integers(8)]
    node[key] = new
    path.write_text("\n".join(json.dumps(row) for row in value) if rows is not None else json.dumps(value))
    return f"{path.name}: {key!r} becomes {new!r}"


KINDS: tuple[Damage, ...] = (
    truncate, flip_bits, overwrite, remove, exchange, swap_columns, change_type, change_rows, drop_column, change_json,
)  # fmt: skip
