"""Decoded data sets as memory-mapped arrays, for random access in training.

A data set is decoded once into a folder named after its fingerprint; every later run, and every process of a run,
maps the same files.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Bool, Int, UInt8

from selfalign.data.cache_dir import cache_dir as user_cache
from selfalign.data.episodes import IMAGE_PREFIX
from selfalign.data.lerobot import LeRobotReader
from selfalign.data.loading import fetch_ahead
from selfalign.data.sources import SourceData
from selfalign.data.transforms import resize_with_pad
from selfalign.model.files import map_array
from selfalign.workers import track

_VERSION = 1
"""Part of a cache's name; to be raised when its layout changes."""

_META = "cache.json"
_PER_EPISODE = ("episode_lengths", "embodiment_index", "task_index", "is_play")


@dataclass(frozen=True, eq=False)
class EpisodeCache:
    """N frames of E episodes, laid end to end.

    Images and columns are read-only memory maps. `frame` arguments and results are indices into the N frames.
    """

    root: Path
    cameras: tuple[str, ...]
    tasks: tuple[str, ...]
    """Distinct instructions; `task_index` points into them."""
    embodiments: tuple[dict[str, Any], ...]
    """Descriptions; `embodiment_index` points into them."""
    fps: float
    episode_lengths: Int[np.ndarray, " E"]
    embodiment_index: Int[np.ndarray, " E"]
    task_index: Int[np.ndarray, " E"]
    is_play: Bool[np.ndarray, " E"]
    column_names: tuple[str, ...]
    pictures: str
    """Changes with the recordings and the size of the pictures, but not with stored features."""

    @classmethod
    def build(
        cls,
        source: SourceData | LeRobotReader,
        cache_dir: str | Path | None = None,
        image_size: int | None = None,
        progress: bool = False,
        workers: int = 0,
    ) -> Self:
        """The decoded form of a data set: opened if it is there, made otherwise.

        Args:
            source: the data set.
            cache_dir: folder that holds the caches of all data sets; default `selfalign.data.cache_dir`.
            image_size: side of the square that images are resized to (with padding); None keeps their size.
            progress: show a progress bar while decoding.
            workers: processes that decode; 0: this one does.

        Raises:
            ValueError, FileNotFoundError: the data set is damaged (see `LeRobotReader`); no cache is left behind.
            OSError: no room on the disk; no cache is left behind.
            RuntimeError: a worker died; no cache is left behind.
        """
        source = SourceData([source]) if isinstance(source, LeRobotReader) else source
        folder = Path(cache_dir) if cache_dir is not None else user_cache("episodes")
        root = folder / _named(source.fingerprint, image_size)
        if (root / _META).is_file():
            return cls.open(root)
        unfinished = folder / f".{root.name}.partial-{os.getpid()}-{os.urandom(3).hex()}"
        unfinished.mkdir(parents=True)
        try:
            _decode_into(unfinished, source, image_size, progress, workers)
            try:
                unfinished.rename(root)
            except OSError:
                if not (root / _META).is_file():  # else another process has finished the same cache first
                    raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return cls.open(root)

    @classmethod
    def open(cls, root: str | Path) -> Self:
        """Opens a cache that `build` made.

        Raises:
            FileNotFoundError: no cache is there.
        """
        root = Path(root)
        if not (root / _META).is_file():
            raise FileNotFoundError(f"{root} is not an episode cache: it has no {_META}")
        meta = json.loads((root / _META).read_text(encoding="utf-8"))
        with np.load(root / "episodes.npz") as arrays:
            episodes = {name: arrays[name] for name in _PER_EPISODE}
        return cls(
            root=root,
            cameras=tuple(meta["cameras"]),
            tasks=tuple(meta["tasks"]),
            embodiments=tuple(meta["embodiments"]),
            fps=meta["fps"],
            column_names=tuple(meta["columns"]),
            pictures=meta.get("pictures", root.name),  # caches of before do not say it
            **episodes,
        )

    @property
    def num_frames(self) -> int:
        return int(self.episode_lengths.sum())

    @property
    def num_episodes(self) -> int:
        return len(self.episode_lengths)

    @cached_property
    def episode_starts(self) -> Int[np.ndarray, " E"]:
        """First frame of each episode."""
        return np.cumsum(self.episode_lengths) - self.episode_lengths

    @cached_property
    def episode_of_frame(self) -> Int[np.ndarray, " N"]:
        """Episode of each frame."""
        return np.repeat(np.arange(self.num_episodes), self.episode_lengths)

    @cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        names = [*self.column_names, *(IMAGE_PREFIX + camera for camera in self.cameras)]
        return {name: np.load(self.root / f"{name}.npy", mmap_mode="r") for name in names}

    def images(self, camera: str) -> UInt8[np.ndarray, "N H W 3"]:
        """All frames of a camera."""
        if camera not in self.cameras:
            raise KeyError(f"no camera {camera!r} in the cache; there are {', '.join(self.cameras) or 'none'}")
        return self._arrays[IMAGE_PREFIX + camera]

    def column(self, name: str) -> np.ndarray:
        """A column [N, ...]: `observation.state`, `action`, or one of the extra columns."""
        if name not in self.column_names:
            raise KeyError(f"no column {name!r} in the cache; there are {', '.join(self.column_names)}")
        return self._arrays[name]

    def chunk(
        self, frames: Int[np.ndarray, " B"], horizon: int
    ) -> tuple[Int[np.ndarray, "B H"], Bool[np.ndarray, "B H"]]:
        """Frames t..t+H-1 of each t, and True where they lie in t's episode; those beyond repeat its last frame."""
        frames = np.asarray(frames)
        last = (self.episode_starts + self.episode_lengths)[self.episode_of_frame[frames]] - 1
        wanted = frames[:, None] + np.arange(horizon)
        return np.minimum(wanted, last[:, None]), wanted <= last[:, None]

    def transitions(self, horizon: int, episodes: Iterable[int] | None = None) -> Int[np.ndarray, " M"]:
        """Every frame t whose o_{t+H} lies in the same episode, of all or of some episodes."""
        picks = range(self.num_episodes) if episodes is None else episodes
        ranges = [self.episode_starts[e] + np.arange(max(0, self.episode_lengths[e] - horizon)) for e in picks]
        return np.concatenate(ranges).astype(np.int64) if ranges else np.zeros(0, dtype=np.int64)

    def episodes_of(self, embodiment: int, is_play: bool | None = None) -> Int[np.ndarray, " K"]:
        """Episodes of an embodiment; only play, or only demonstrations, where `is_play` says so."""
        picked = self.embodiment_index == embodiment
        if is_play is not None:
            picked = picked & (self.is_play == is_play)
        return np.flatnonzero(picked)


def _named(fingerprint: str, image_size: int | None) -> str:
    return f"{fingerprint}-{image_size or 'full'}-v{_VERSION}"


def _decode_into(folder: Path, source: SourceData, image_size: int | None, progress: bool, workers: int) -> None:
    total, arrays, start = source.num_frames, {}, 0
    decoded = fetch_ahead(partial(_decoded, source, image_size), range(len(source)), workers)
    for columns, ref in zip(_with_progress(decoded, len(source), progress), source.refs, strict=True):
        for name, values in columns.items():
            if name not in arrays:
                arrays[name] = map_array(folder / f"{name}.npy", values.dtype, (total, *values.shape[1:]))
            if values.shape[1:] != arrays[name].shape[1:]:
                raise ValueError(
                    f"column {name!r} has shape {list(values.shape[1:])} in one episode and "
                    f"{list(arrays[name].shape[1:])} in those before; give `image_size` if cameras differ"
                )
            arrays[name][start : start + len(values)] = values
        start += ref.length
    for array in arrays.values():
        array.flush()

    tasks = list(dict.fromkeys(ref.task for ref in source.refs))
    position = {task: i for i, task in enumerate(tasks)}
    np.savez(
        folder / "episodes.npz",
        episode_lengths=np.array([ref.length for ref in source.refs], dtype=np.int64),
        embodiment_index=np.array([ref.embodiment_index for ref in source.refs], dtype=np.int64),
        task_index=np.array([position[ref.task] for ref in source.refs], dtype=np.int64),
        is_play=np.array([ref.is_play for ref in source.refs], dtype=bool),
    )
    meta = {
        "cameras": [name.removeprefix(IMAGE_PREFIX) for name in arrays if name.startswith(IMAGE_PREFIX)],
        "columns": [name for name in arrays if not name.startswith(IMAGE_PREFIX)],
        "tasks": tasks,
        "embodiments": source.embodiments,
        "fps": source.info.fps,
        "pictures": _named(source.plain_fingerprint, image_size),
    }
    (folder / _META).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")


def _decoded(source: SourceData, image_size: int | None, index: int) -> dict[str, np.ndarray]:
    """The columns of an episode, pictures resized."""
    return {name: _resized(values, name, image_size) for name, values in source[index].columns().items()}


def _resized(values: np.ndarray, name: str, image_size: int | None) -> np.ndarray:
    if image_size is None or not name.startswith(IMAGE_PREFIX):
        return values
    return resize_with_pad(values, image_size, image_size)


def _with_progress(
    decoded: Iterator[dict[str, np.ndarray]], total: int, progress: bool
) -> Iterable[dict[str, np.ndarray]]:
    return track(decoded, "decoding", total) if progress else decoded
