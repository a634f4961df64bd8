"""Seeded damage to the files of a folder, and the check that it is never silent: a clear error or the same result."""

import json
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Damage = Callable[[Path, np.random.Generator], str]
"""Changes something in a folder; returns what."""


def damage(kinds: Sequence[Damage], root: Path, seed: int) -> str:
    """Damages in one way, the kinds by turns; the same seed does the same."""
    return kinds[seed % len(kinds)](root, np.random.default_rng(seed))


def pick(root: Path, rng: np.random.Generator, *patterns: str) -> Path:
    """One of the files, of those whose names match a pattern."""
    found = {path for pattern in patterns or ("*",) for path in root.rglob(pattern) if path.is_file()}
    files = sorted(found)
    return files[rng.integers(len(files))]


# ---- kinds ---------------------------------------------------------------------------------------------------------


def truncate(root: Path, rng: np.random.Generator, *patterns: str) -> str:
    path = pick(root, rng, *patterns)
    data = path.read_bytes()
    keep = int(rng.integers(len(data)))
    path.write_bytes(data[:keep])
    return f"{path.name} cut to {keep} of {len(data)} bytes"


def flip_bits(root: Path, rng: np.random.Generator, *patterns: str) -> str:
    path, count = pick(root, rng, *patterns), int(rng.integers(1, 5))
    data = bytearray(path.read_bytes())
    for position in rng.integers(len(data), size=count):
        data[position] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)
    return f"{count} bits of {path.name}"


def overwrite(root: Path, rng: np.random.Generator, *patterns: str) -> str:
    path = pick(root, rng, *patterns)
    data = bytearray(path.read_bytes())
    start = int(rng.integers(len(data)))
    end = min(len(data), start + int(rng.integers(1, 200)))
    data[start:end] = rng.bytes(end - start)
    path.write_bytes(data)
    return f"bytes {start} to {end} of {path.name}"


def remove(root: Path, rng: np.random.Generator) -> str:
    path = pick(root, rng)
    path.unlink()
    return f"{path.name} removed"


def exchange(root: Path, rng: np.random.Generator, *, alike: bool = False) -> str:
    """Two files change places; `alike`: of the same suffix (and perhaps the same one)."""
    first = pick(root, rng)
    second = pick(root, rng, f"*{first.suffix}" if alike else "*")
    while not alike and second == first:
        second = pick(root, rng)
    data, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(data)
    return f"{first} and {second} exchanged"


def change_json(root: Path, rng: np.random.Generator) -> str:
    """One value of a JSON file becomes another kind of thing, or another number."""
    path = pick(root, rng, "*.json", "*.jsonl")
    lines = path.suffix == ".jsonl"
    value = [json.loads(line) for line in path.read_text().splitlines()] if lines else json.loads(path.read_text())
    places: list[tuple] = []

    def walk(node) -> None:
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            places.append((node, key))
            if isinstance(child, dict | list):
                walk(child)

    walk(value)
    node, key = places[rng.integers(len(places))]
    new = (None, -1, 1e300, "x", [], {}, 10**30, True, 10**6, 0.5)[rng.integers(10)]
    node[key] = new
    path.write_text("\n".join(json.dumps(row) for row in value) if lines else json.dumps(value))
    return f"{path.name}: {key!r} becomes {new!r}"


# ---- the check -----------------------------------------------------------------------------------------------------


def same(expected: Any, found: Any) -> bool:
    """Equal throughout: dictionaries, tuples, arrays and plain values in each other."""
    if isinstance(expected, dict):
        return expected.keys() == found.keys() and all(same(expected[key], found[key]) for key in expected)
    if isinstance(expected, tuple):
        return len(expected) == len(found) and all(map(same, expected, found))
    return np.array_equal(expected, found) if isinstance(expected, np.ndarray) else expected == found


def check_damage(
    clean: Path,
    folder: Path,
    seeds: Iterable[int],
    kinds: Sequence[Damage],
    reading: Callable[[Path], Any],
    *,
    right: Callable[[Any, Any, str], bool] = lambda expected, found, what: same(expected, found),
    errors: float = 0.5,
) -> None:
    """Reads damaged copies of `clean`: each is a ValueError or FileNotFoundError that names a path in it, or right.

    Args:
        folder: where the copies are made.
        reading: everything that is read of it.
        right: whether what was found is what was expected, by what was damaged.
        errors: more than this share must be errors, or the damage was none.
    """
    expected, outcomes = reading(clean), {}
    for seed in seeds:
        root = shutil.copytree(clean, folder / str(seed))
        what = damage(kinds, root, seed)
        outcomes[f"seed {seed}, {what}"] = _outcome(expected, root, reading, right, what)
        shutil.rmtree(root)
    wrong = {what: result for what, result in outcomes.items() if result not in ("error", "exact")}
    assert not wrong, "\n".join(f"{what}: {result}" for what, result in wrong.items())
    assert list(outcomes.values()).count("error") > errors * len(outcomes), outcomes


def _outcome(expected: Any, root: Path, reading: Callable, right: Callable, what: str) -> str:
    """ "error", "exact", or what went wrong."""
    began = time.process_time()
    try:
        found = reading(root)
    except (ValueError, FileNotFoundError) as error:
        result = "error" if str(root) in str(error) else f"the message names no file: {error}"
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of a library in Rust is no Exception
        result = f"{type(error).__name__} {error}"
    else:
        result = "exact" if right(expected, found, what) else "a silently wrong result"
    return result if time.process_time() - began < 5 else "it took too long"
