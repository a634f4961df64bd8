"""What the files of a data set must weigh: damage that decoders would conceal is found before they see it.

`meta/checksums.json` is ours: `{"algorithm": "crc32", "files": {path: [bytes, crc32]}}`, for every file but
`meta/info.json`, `meta/stats.json` and itself. Data sets without it (recorded by others) are read unchecked; whoever
edits a data set on purpose deletes it.
"""

import contextlib
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from selfalign.data.cache_dir import cache_dir
from selfalign.model.files import write_atomically

CHECKSUMS_PATH = "meta/checksums.json"
_UNCHECKED = {CHECKSUMS_PATH, "meta/info.json", "meta/stats.json"}
_BLOCK = 2**20


@dataclass(frozen=True)
class Checksums:
    """Sizes and sums by path relative to `root`; empty where the data set has none."""

    root: Path
    files: Mapping[str, tuple[int, int]]
    _passed: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, root: Path) -> Self:
        """Reads `meta/checksums.json`, if there is one.

        Raises:
            ValueError: it is not such a file.
        """
        path = root / CHECKSUMS_PATH
        if not path.is_file():
            return cls(root, {})
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            if raw["algorithm"] != "crc32":
                raise ValueError(f"unknown algorithm {raw['algorithm']!r}")
            return cls(root, {str(name): (int(size), int(crc)) for name, (size, crc) in raw["files"].items()})
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({error}); delete it to read the data set unchecked") from error

    @classmethod
    def of(cls, root: Path) -> Self:
        """Those of the files that are in `root` now."""
        paths = sorted(path for path in root.rglob("*") if path.is_file())
        names = [path.relative_to(root).as_posix() for path in paths]
        return cls(root, {name: _weigh(root / name) for name in names if name not in _UNCHECKED})

    def write(self) -> None:
        text = json.dumps({"algorithm": "crc32", "files": self.files}, indent=1) + "\n"
        path = self.root / CHECKSUMS_PATH
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def check_all(self) -> None:
        """Weighs every file.

        Raises:
            FileNotFoundError: one is missing.
            ValueError: one is not what it was.
        """
        for name in self.files:
            if not (self.root / name).is_file():
                raise FileNotFoundError(f"{self.root / name} is missing")
            self.check(self.root / name)

    def check(self, path: Path) -> None:
        """Weighs a file, once.

        Raises:
            ValueError: it is not what it was.
        """
        name = path.relative_to(self.root).as_posix()
        if name in self._passed or name not in self.files or not path.is_file():
            return
        size, crc = self.files[name]
        if path.stat().st_size != size:
            found = path.stat().st_size
            raise ValueError(f"{path} is damaged or cut off: it has {found} bytes instead of {size}; {_REMEDY}")
        if _weigh(path) != (size, crc):
            raise ValueError(f"{path} is damaged: it differs from what was written (checksum); {_REMEDY}")
        self._passed.add(name)


def weighed(root: Path, names: Sequence[str]) -> dict[str, int]:
    """crc32 of files that have no sums of their own, by their paths relative to `root`.

    Kept in the user's cache: as long as sizes and times are those of before, nothing is read again.
    """
    if not names:
        return {}
    stats = [(root / name).stat() for name in names]
    told = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in zip(names, stats, strict=True)]
    key = hashlib.sha256(json.dumps([str(root.resolve()), told]).encode()).hexdigest()[:16]
    kept = cache_dir("sums") / f"{key}.json"
    if kept.is_file():
        return json.loads(kept.read_text())
    sums = {name: _weigh(root / name)[1] for name in names}
    with contextlib.suppress(OSError):  # without a cache that can be written to they are weighed again
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, lambda path: path.write_text(json.dumps(sums)))
    return sums


_REMEDY = f"restore it, or delete {CHECKSUMS_PATH} if it was changed on purpose"


def _weigh(path: Path) -> tuple[int, int]:
    size = crc = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return size, crc
