"""Several data sets on disk seen as one: shards written by parallel workers, or different recordings."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from selfalign.data.episodes import Episode
from selfalign.data.lerobot import LeRobotReader
from selfalign.data.schema import EMBODIMENT_INDEX, INFO_PATH, DatasetInfo


@dataclass(frozen=True)
class EpisodeRef:
    """What is known of an episode without reading its frames; indices are those of the whole source."""

    reader: int
    episode: int
    length: int
    task: str
    embodiment_index: int
    is_play: bool


class SourceData:
    """One or several LeRobot data sets with the same columns, in one numbering of episodes and embodiments.

    Embodiments that are described alike in several data sets are one; others keep their own index.
    """

    def __init__(self, readers: Sequence[LeRobotReader]) -> None:
        """Joins open data sets.

        Raises:
            ValueError: none is given, or their columns or rates differ.
        """
        if not readers:
            raise ValueError("no data set was given")
        self.readers = list(readers)
        for reader in self.readers[1:]:
            _check_alike(self.readers[0], reader)
        self.embodiments: list[dict[str, Any]] = []
        self._embodiment_maps = [self._merge_embodiments(reader.embodiments) for reader in self.readers]
        self.refs = [
            EpisodeRef(i, j, meta.length, meta.task, self._embodiment(i, meta.embodiment_index), meta.is_play)
            for i, reader in enumerate(self.readers)
            for j, meta in enumerate(reader.metadata)
        ]

    @classmethod
    def open(cls, paths: str | Path | Iterable[str | Path], *, strict: bool = True) -> Self:
        """Opens data sets by path; a folder of data sets (`root/shard-00`, ...) stands for all of them in order.

        `strict=False` leaves broken episodes out with a warning that counts them (see `LeRobotReader`).

        Raises:
            FileNotFoundError: a path is missing, or holds no data set.
            ValueError: see the class, and `LeRobotReader`.
        """
        given = [paths] if isinstance(paths, str | Path) else list(paths)
        return cls([LeRobotReader(root, strict=strict) for path in given for root in _roots(Path(path))])

    def __len__(self) -> int:
        """Episodes."""
        return len(self.refs)

    def __getitem__(self, index: int) -> Episode:
        return next(self.episodes([index]))

    @property
    def info(self) -> DatasetInfo:
        """Columns and rate, which all data sets share (its totals are the first one's)."""
        return self.readers[0].info

    @property
    def num_frames(self) -> int:
        return sum(ref.length for ref in self.refs)

    @property
    def fingerprint(self) -> str:
        """A short hash that changes with any of the data sets."""
        joined = "+".join(reader.fingerprint for reader in self.readers)
        return hashlib.sha256(joined.encode()).hexdigest()[:16]

    def episodes(self, indices: Iterable[int] | None = None) -> Iterator[Episode]:
        """Episodes in the order of `indices` (default: all), with the joint numbering of embodiments."""
        for ref in self.refs if indices is None else (self.refs[i] for i in indices):
            episode = self.readers[ref.reader][ref.episode]
            yield replace(episode, embodiment_index=ref.embodiment_index)

    def columns(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Whole columns [N, ...] over all frames in the order of the episodes, without decoding images."""
        parts = [reader.columns(names) for reader in self.readers]
        for part, mapping in zip(parts, self._embodiment_maps, strict=True):
            if EMBODIMENT_INDEX in part:
                part[EMBODIMENT_INDEX] = np.asarray(mapping)[part[EMBODIMENT_INDEX]]
        return {name: np.concatenate([part[name] for part in parts]) for name in names}

    def _merge_embodiments(self, bodies: list[dict[str, Any]]) -> list[int]:
        """Index in `self.embodiments` for each of `bodies`, which join it where they are new."""
        known = {json.dumps(body, sort_keys=True): i for i, body in enumerate(self.embodiments)}
        mapping = []
        for body in bodies:
            key = json.dumps(body, sort_keys=True)
            if key not in known:
                known[key] = len(self.embodiments)
                self.embodiments.append(body)
            mapping.append(known[key])
        return mapping

    def _embodiment(self, reader: int, index: int) -> int:
        mapping = self._embodiment_maps[reader]
        if not 0 <= index < len(mapping):
            raise ValueError(
                f"{self.readers[reader].root}: an episode is of embodiment {index}, "
                f"but meta/embodiments.json describes {len(mapping)}"
            )
        return mapping[index]


def _roots(path: Path) -> list[Path]:
    if (path / INFO_PATH).is_file() or not path.is_dir():
        return [path]
    inner = sorted(child.parent.parent for child in path.glob(f"[!.]*/{INFO_PATH}"))
    if not inner:
        raise FileNotFoundError(f"{path} holds no data set: neither it nor a folder in it has {INFO_PATH}")
    return inner


def _check_alike(first: LeRobotReader, other: LeRobotReader) -> None:
    if other.info.fps != first.info.fps:
        raise ValueError(f"{first.root} runs at {first.info.fps} Hz, {other.root} at {other.info.fps} Hz")
    ours, theirs = ({name: feature.kind for name, feature in r.info.columns.items()} for r in (first, other))
    differing = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    if differing:
        raise ValueError(f"{first.root} and {other.root} differ in the columns {', '.join(differing)}")
