"""Several data sets on disk seen as one: shards written by parallel workers, or different recordings."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from selfalign.data.episodes import Episode
from selfalign.data.features import FeatureStore
from selfalign.data.lerobot import LeRobotReader, Problem
from selfalign.data.rlds import RldsReader
from selfalign.data.schema import EMBODIMENT_INDEX, INFO_PATH, DatasetInfo

RECORDED = "data/sources"
"""Where `selfalign sources` writes, and what is read where nothing is said."""
FORMATS = ("lerobot", "rlds")
"""What may stand before the colon of a data set's name."""


class EpisodeInfo(Protocol):
    """What a reader knows of an episode without reading its frames."""

    @property
    def length(self) -> int: ...

    @property
    def task(self) -> str: ...

    @property
    def embodiment_index(self) -> int: ...

    @property
    def is_play(self) -> bool: ...


class EpisodeReader(Protocol):
    """One data set on disk, of whatever format: `LeRobotReader`, `RldsReader`."""

    root: Path
    info: DatasetInfo
    embodiments: list[dict[str, Any]]

    @property
    def metadata(self) -> Sequence[EpisodeInfo]: ...

    @property
    def problems(self) -> Sequence[Problem]: ...

    @property
    def num_frames(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Episode: ...

    def columns(self, names: Sequence[str]) -> dict[str, np.ndarray]: ...

    def trajectories(self, indices: Iterable[int]) -> Iterator[tuple[np.ndarray, np.ndarray]]: ...


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
    """One or several data sets with the same columns, in one numbering of episodes and embodiments.

    Embodiments that are described alike in several data sets are one; others keep their own index.
    """

    def __init__(
        self,
        readers: Sequence[EpisodeReader],
        *,
        cameras: Mapping[str, str] | None = None,
        features: FeatureStore | None = None,
        groups: Sequence[int] | None = None,
    ) -> None:
        """Joins open data sets.

        Args:
            readers: the data sets.
            cameras: new name -> the data sets' name of each camera that episodes keep, both bare; None: all, as they
                are called.
            features: of all frames; episodes then have them as columns.
            groups: for each reader, which of several sources it is a shard of; None: each is a source of its own.

        Raises:
            ValueError: none is given, their columns or rates differ, they lack a camera, or features are of other data.
        """
        if not readers:
            raise ValueError("no data set was given")
        self.readers, self.cameras = list(readers), None if cameras is None else dict(cameras)
        self.groups = list(range(len(readers)) if groups is None else groups)
        missing = set((cameras or {}).values()) - set(self.info.cameras)
        if missing:
            known = ", ".join(self.info.cameras) or "none"
            raise ValueError(f"{readers[0].root} has no camera {', '.join(sorted(missing))}; it has {known}")
        for reader in self.readers[1:]:
            _check_alike(self.readers[0], reader)
        self.embodiments: list[dict[str, Any]] = []
        self._embodiment_maps = [self._merge_embodiments(reader.embodiments) for reader in self.readers]
        self.refs = [
            EpisodeRef(i, j, meta.length, meta.task, self._embodiment(i, meta.embodiment_index), meta.is_play)
            for i, reader in enumerate(self.readers)
            for j, meta in enumerate(reader.metadata)
        ]
        self.features = features
        if features is not None:
            features.check(self.plain_fingerprint, [ref.length for ref in self.refs])

    @classmethod
    def open(
        cls,
        names: str | Path | Iterable[str | Path],
        *,
        strict: bool = True,
        cameras: Mapping[str, str] | None = None,
        features: str | Path | None = None,
    ) -> Self:
        """Opens data sets by name.

        Args:
            names: one or several of: a path of a LeRobot data set; `lerobot:PATH`, which is the same;
                `lerobot:PATH,PATH`; `rlds:PATH@HZ` with the rate, which RLDS does not tell. A folder of LeRobot data
                sets (`root/shard-00`, ...) stands for all of them in order. What one name stands for is one group.
            strict: False leaves broken episodes of LeRobot data sets out with a warning that counts them.
            cameras: see the class.
            features: folder that `selfalign features` wrote for these data.

        Raises:
            FileNotFoundError: a path is missing, or holds no data set.
            ValueError: an unknown format; see the class, and `LeRobotReader`.
        """
        readers: list[EpisodeReader] = []
        groups: list[int] = []
        for group, name in enumerate([names] if isinstance(names, str | Path) else names):
            if str(name) == RECORDED and not Path(name).exists():
                raise FileNotFoundError(
                    f"there is no {RECORDED}: record it with `selfalign sources`, or name data sets with --data"
                )
            opened = [reader for kind, path in split_name(name) for reader in _open(kind, path, strict)]
            readers += opened
            groups += [group] * len(opened)
        return cls(
            readers,
            cameras=cameras,
            features=None if features is None else FeatureStore.open(features),
            groups=groups,
        )

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
        """A short hash that changes with any of the data sets, with the names of cameras and with the features."""
        if self.features is None:
            return self.plain_fingerprint
        return hashlib.sha256(f"{self.plain_fingerprint} {self.features.name}".encode()).hexdigest()[:16]

    @cached_property
    def plain_fingerprint(self) -> str:
        """`fingerprint` without features: of what was recorded."""
        joined = "+".join(reader.fingerprint for reader in self.readers)
        if self.cameras is not None:
            joined += json.dumps(self.cameras, sort_keys=True)
        return hashlib.sha256(joined.encode()).hexdigest()[:16]

    def episodes(self, indices: Iterable[int] | None = None) -> Iterator[Episode]:
        """Episodes in the order of `indices` (default: all), with the joint numbering of embodiments."""
        for index in range(len(self)) if indices is None else indices:
            ref = self.refs[index]
            episode = self.readers[ref.reader][ref.episode]
            if self.features is not None:
                episode = self.features.attach(index, episode)
            images = episode.images
            if self.cameras is not None:
                images = {new: images[old] for new, old in self.cameras.items()}
            yield replace(episode, images=images, embodiment_index=ref.embodiment_index)

    def require_cameras(self, cameras: Iterable[str]) -> None:
        """Raises `ValueError` unless episodes have these cameras."""
        missing = set(cameras) - set(self.info.cameras if self.cameras is None else self.cameras)
        if missing:
            raise ValueError(
                f"{self.readers[0].root} lacks the model's cameras {', '.join(sorted(missing))}; use --cameras"
            )

    def of_robot(self, embodiment_index: int | None = None, *, play_only: bool = False) -> list[int]:
        """Episodes of one robot, in order; `None` is the only one.

        Raises:
            ValueError: there are several and none was chosen, or it has no such episode.
        """
        refs = [(i, ref) for i, ref in enumerate(self.refs) if ref.is_play or not play_only]
        present = sorted({ref.embodiment_index for _, ref in refs})
        kind = "episode of play" if play_only else "episode"
        if embodiment_index is None and len(present) > 1:
            raise ValueError(f"the data are of the robots {present}: choose one with --embodiment-index")
        if embodiment_index is None and not present:
            raise ValueError(f"the data hold no {kind}")
        chosen = present[0] if embodiment_index is None else embodiment_index
        if chosen not in present:
            raise ValueError(f"the data hold no {kind} of robot {chosen}, only of {present}")
        return [i for i, ref in refs if ref.embodiment_index == chosen]

    def columns(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Whole columns [N, ...] over all frames in the order of the episodes, without decoding images."""
        parts = [reader.columns(names) for reader in self.readers]
        for part, mapping in zip(parts, self._embodiment_maps, strict=True):
            if EMBODIMENT_INDEX in part:
                part[EMBODIMENT_INDEX] = np.asarray(mapping)[part[EMBODIMENT_INDEX]]
        return {name: np.concatenate([part[name] for part in parts]) for name in names}

    def embodiments_of(self, group: int) -> set[int]:
        """Embodiments that a source describes."""
        maps = (m for m, of in zip(self._embodiment_maps, self.groups, strict=True) if of == group)
        return {embodiment for mapping in maps for embodiment in mapping}

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


def split_name(name: str | Path) -> list[tuple[str, Path]]:
    """(format, path) of each data set that `FORMAT:PATH[,PATH...]`, or a path alone, stands for.

    Raises:
        ValueError: an unknown format, or no path after the colon.
    """
    kind, colon, rest = str(name).partition(":")
    if not colon or "/" in kind or Path(name).exists():
        return [(FORMATS[0], Path(name))]
    if kind not in FORMATS:
        raise ValueError(f"unknown kind of data set {kind!r} in {name}; known: {', '.join(f'{k}:' for k in FORMATS)}")
    paths = [(kind, Path(part)) for part in rest.split(",") if part]
    if not paths:
        raise ValueError(f"{name} names no path; write {kind}:PATH, or {kind}:PATH,PATH for several")
    return paths


def _open(kind: str, path: Path, strict: bool) -> Sequence[EpisodeReader]:
    if kind == "rlds":
        return [RldsReader(*_rate(path))]
    return [LeRobotReader(root, strict=strict) for root in _roots(path)]


def _rate(path: Path) -> tuple[Path, float]:
    """The path and the rate of `PATH@HZ`."""
    where, _, rate = str(path).rpartition("@")
    try:
        return Path(where), float(rate)
    except ValueError:
        raise ValueError(
            f"RLDS does not tell the rate of rlds:{path}; write rlds:PATH@HZ, such as rlds:{path}@10"
        ) from None


def _roots(path: Path) -> list[Path]:
    if (path / INFO_PATH).is_file() or not path.is_dir():
        return [path]
    inner = sorted(child.parent.parent for child in path.glob(f"[!.]*/{INFO_PATH}"))
    if not inner:
        raise FileNotFoundError(f"{path} holds no data set: neither it nor a folder in it has {INFO_PATH}")
    return inner


def _check_alike(first: EpisodeReader, other: EpisodeReader) -> None:
    if other.info.fps != first.info.fps:
        raise ValueError(f"{first.root} runs at {first.info.fps} Hz, {other.root} at {other.info.fps} Hz")
    ours, theirs = ({name: feature.kind for name, feature in r.info.columns.items()} for r in (first, other))
    differing = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    if differing:
        raise ValueError(f"{first.root} and {other.root} differ in the columns {', '.join(differing)}")
