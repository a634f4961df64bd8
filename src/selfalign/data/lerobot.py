"""Reading LeRobot data sets (v2.0, v2.1, v3.0; images or video) from disk, and, from `lerobot_writer`, writing them."""

import hashlib
import json
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from selfalign.data.checksums import Checksums, weighed
from selfalign.data.episodes import IMAGE_PREFIX, Episode
from selfalign.data.lerobot_index import EpisodeMeta, read_embodiments, read_episodes, read_tasks
from selfalign.data.lerobot_writer import LeRobotWriter
from selfalign.data.parquet import FrameFile
from selfalign.data.png import decode_frame
from selfalign.data.schema import ACTION, EMBODIMENT_INDEX, IS_PLAY, STATE, DatasetInfo, from_arrow
from selfalign.data.video import DecoderCache

__all__ = ["EpisodeMeta", "LeRobotReader", "LeRobotWriter", "Problem"]

_STATS_TOLERANCE = 1e-3
"""By how much statistics may miss the values, as part of their range; LeRobot computes them in float32."""


@dataclass(frozen=True)
class Problem:
    """An episode that was left out, and why."""

    episode: int
    message: str


class LeRobotReader:
    """A LeRobot data set on disk.

    `len(reader)` is the number of episodes; `reader[i]` and `reader.episodes()` give them as `Episode`. What is read
    is compared with what the metadata says of it: rows, time stamps, indices, statistics, and (for data sets of
    `LeRobotWriter`) checksums.

    Raises:
        FileNotFoundError: no such path, no data set there, or one of its files is missing.
        ValueError: an unknown version, a damaged file (named, with the row), or files that contradict each other.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        strict: bool = True,
        tolerance_s: float = 1e-4,
        check_stats: bool = True,
        max_open_videos: int = 8,
    ) -> None:
        """Opens a data set.

        Args:
            root: its folder.
            strict: stop at the first thing that is wrong. Otherwise every episode is read once now, the broken ones
                are left out with a warning that counts them, and `problems` lists them; broken metadata stops both.
            tolerance_s: by how much time stamps may miss the rate, and frames of a video their time stamps, seconds.
            check_stats: compare each episode's values with its statistics, which finds columns that were swapped;
                False is for data sets that were edited without computing them again.
            max_open_videos: videos that are held open, at most.
        """
        self.root = Path(root)
        self.tolerance_s, self.check_stats = tolerance_s, check_stats
        self.info = DatasetInfo.read(self.root)
        self.checksums = Checksums.read(self.root)
        self.tasks = read_tasks(self.root, self.info, self.checksums)
        self.embodiments = read_embodiments(self.root, self.info, self.checksums)
        self.metadata = read_episodes(self.root, self.info, self.checksums)
        self.problems: tuple[Problem, ...] = ()
        self.videos = DecoderCache(max_open_videos)
        self._open_file: FrameFile | None = None
        self._known_times: dict[int, np.ndarray] = {}
        if not strict:
            self._leave_out_broken()

    def __len__(self) -> int:
        return len(self.metadata)

    def __getitem__(self, index: int) -> Episode:
        return next(self.episodes([index]))

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_open_file": None}  # another process opens its own

    @property
    def num_frames(self) -> int:
        return sum(meta.length for meta in self.metadata)

    def episodes(self, indices: Iterable[int] | None = None) -> Iterator[Episode]:
        """Episodes in the order of `indices` (default: all); reads and decodes one at a time."""
        for index in range(len(self)) if indices is None else indices:
            yield self._episode(self.metadata[index])

    def trajectories(self, indices: Iterable[int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """States [T, S] and actions [T, A] of episodes in the order of `indices`; no picture is read."""
        for numbers in self._read_numbers((self.metadata[i] for i in indices), [STATE, ACTION]):
            yield _as_matrix(numbers[STATE]), _as_matrix(numbers[ACTION])

    def columns(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Whole columns [N, ...] over all frames, without decoding images (which cannot be asked for)."""
        features = self.info.columns
        for name in names:
            if name not in features or features[name].is_camera:
                raise ValueError(f"no numeric column {name!r}; there are {', '.join(features)}")
        parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
        for numbers in self._read_numbers(self.metadata, names):
            for name in names:
                parts[name].append(numbers[name])
        return {name: np.concatenate(values) for name, values in parts.items()}

    def frames(self, episode: int, camera: str, frames: Sequence[int]) -> np.ndarray:
        """Some frames [K, H, W, 3] of a camera, in any order, without decoding the others (but a few before them).

        Args:
            episode: its index.
            camera: bare name.
            frames: indices within the episode.

        Raises:
            IndexError: a frame that the episode does not have.
            ValueError, FileNotFoundError: see the class.
        """
        meta, rows = self.metadata[episode], np.asarray(frames, dtype=np.int64)
        if len(rows) and not (rows.min() >= 0 and rows.max() < meta.length):
            raise IndexError(f"episode {episode} has {meta.length} frames; {frames} are not all among them")
        if self.info.features[IMAGE_PREFIX + camera].is_video:
            return self._from_video(meta, camera, self._times(meta)[rows])
        return self._decode(self._rows(meta)[IMAGE_PREFIX + camera].take(pa.array(rows)), camera, meta, rows)

    @property
    def fingerprint(self) -> str:
        """A short hash that changes with the data: metadata (with each episode's statistics and the checksums, where
        there are some), file sizes, and the sums of tables that have no checksum. A copy has the same."""
        digest = hashlib.sha256()
        for path in sorted((self.root / "meta").rglob("*")):
            if path.is_file():
                digest.update(path.relative_to(self.root).as_posix().encode() + path.read_bytes())
        videos = (span.file for meta in self.metadata for span in meta.videos.values())
        tables = dict.fromkeys(meta.file for meta in self.metadata)
        # Videos may be hundreds of gigabytes, and hardly keep their size when they are made anew.
        sums = weighed(self.root, [file for file in tables if file not in self.checksums.files])
        for file in dict.fromkeys([*tables, *videos]):
            digest.update(f"{file}:{(self.root / file).stat().st_size}".encode())
            if file in sums:
                digest.update(f":{sums[file]}".encode())
        if self.problems:
            digest.update(json.dumps([meta.index for meta in self.metadata]).encode())
        return digest.hexdigest()[:16]

    def _leave_out_broken(self) -> None:
        good, problems = [], []
        for meta in self.metadata:
            try:
                self._episode(meta)
                good.append(meta)
            except (ValueError, OSError) as error:
                problems.append(Problem(meta.index, str(error)))
        if problems:
            found = f"{self.root}: {len(problems)} of {len(self.metadata)} episodes are broken"
            if not good:
                raise ValueError(f"{found}; the first: {problems[0].message}")
            warnings.warn(f"{found} and left out; the first: {problems[0].message}", stacklevel=3)
        self.metadata, self.problems = good, tuple(problems)

    @property
    def _bookkeeping(self) -> list[str]:
        names = ("timestamp", "frame_index", "episode_index", "index", "task_index", EMBODIMENT_INDEX, IS_PLAY)
        return [name for name in names if name in self.info.columns]

    def _file(self, meta: EpisodeMeta, names: Sequence[str]) -> FrameFile:
        self.checksums.check(self.root / meta.file)
        return FrameFile(self.root / meta.file, names)

    def _rows(self, meta: EpisodeMeta) -> pa.Table:
        if self._open_file is None or self._open_file.path != self.root / meta.file:
            stored = [name for name, feature in self.info.columns.items() if not feature.is_video]
            self._open_file = self._file(meta, stored)
        return self._open_file.rows(meta.row, meta.length)

    def _times(self, meta: EpisodeMeta) -> np.ndarray:
        """Time stamps of an episode, which stay in memory: without them no frame of a video is found."""
        if meta.index not in self._known_times:
            self._known_times[meta.index] = self._column(meta, self._rows(meta), "timestamp")
        return self._known_times[meta.index]

    def _episode(self, meta: EpisodeMeta) -> Episode:
        table = self._rows(meta)
        names = [name for name, feature in self.info.columns.items() if not feature.is_camera]
        numbers = self._numbers(meta, table, names)
        images = {}
        for camera in self.info.cameras:
            if camera in meta.videos:
                images[camera] = self._from_video(meta, camera, numbers["timestamp"])
            else:
                images[camera] = self._decode(table[IMAGE_PREFIX + camera], camera, meta, np.arange(meta.length))
        return Episode(
            images=images,
            state=_as_matrix(numbers[STATE]).astype(np.float32, copy=False),
            action=_as_matrix(numbers[ACTION]).astype(np.float32, copy=False),
            task=meta.task,
            fps=float(self.info.fps),
            embodiment_index=meta.embodiment_index,
            is_play=meta.is_play,
            extra={name: numbers[name] for name in self.info.extra},
        )

    def _read_numbers(self, episodes: Iterable[EpisodeMeta], names: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
        """Columns of episodes, and the bookkeeping that they are compared by."""
        wanted = [*dict.fromkeys([*names, *self._bookkeeping])]
        file: FrameFile | None = None
        for meta in episodes:
            if file is None or file.path != self.root / meta.file:
                file = self._file(meta, wanted)
            yield self._numbers(meta, file.rows(meta.row, meta.length), wanted)

    def _numbers(self, meta: EpisodeMeta, table: pa.Table, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Columns of one episode, compared with the metadata."""
        numbers = {name: self._column(meta, table, name) for name in names}
        self._check_bookkeeping(meta, numbers)
        if self.check_stats:
            for name in (name for name in numbers if name in meta.bounds):
                self._check_bounds(meta, name, numbers[name])
        return numbers

    def _column(self, meta: EpisodeMeta, table: pa.Table, name: str) -> np.ndarray:
        try:
            return from_arrow(table[name], self.info.features[name], meta.row)
        except (ValueError, pa.ArrowException) as error:
            raise ValueError(f"{self.root / meta.file}, column {name!r}: {error}") from error

    def _check_bookkeeping(self, meta: EpisodeMeta, numbers: dict[str, np.ndarray]) -> None:
        steps = np.arange(meta.length)
        wanted = {
            "episode_index": np.full(meta.length, meta.index),
            "frame_index": steps,
            "index": meta.start + steps,
            EMBODIMENT_INDEX: np.full(meta.length, meta.embodiment_index),
            IS_PLAY: np.full(meta.length, int(meta.is_play)),
        }
        for name in (name for name in wanted if name in numbers):
            self._refuse(meta, name, numbers[name], numbers[name] != wanted[name], f"should be {wanted[name][0]} + ...")
        if "task_index" in numbers:
            known = np.isin(numbers["task_index"], np.fromiter(self.tasks, np.int64, len(self.tasks)))
            self._refuse(meta, "task_index", numbers["task_index"], ~known, "names no task of the data set")
            stated = meta.task or "" in self.tasks.values()
            if (
                stated
                and self.tasks[int(numbers["task_index"][0])] != meta.task
                and len(set(numbers["task_index"])) == 1
            ):
                found = self.tasks[int(numbers["task_index"][0])]
                raise ValueError(
                    f"{self.root / meta.file}, row {meta.row}: the task is {found!r}, the metadata of episode "
                    f"{meta.index} says {meta.task!r}"
                )
        if "timestamp" in numbers:
            times = numbers["timestamp"].astype(np.float64)
            jump = np.abs(times - times[0] - steps / self.info.fps)
            late = ~(jump <= self.tolerance_s + 1e-7 * np.abs(times))  # float32 stamps of long episodes are coarse
            self._refuse(meta, "timestamp", times, late, f"is not at the rate of {self.info.fps} Hz (tolerance_s)")

    def _refuse(self, meta: EpisodeMeta, name: str, values: np.ndarray, wrong: np.ndarray, why: str) -> None:
        if wrong.any():
            row = int(np.argmax(wrong))
            raise ValueError(
                f"{self.root / meta.file}, row {meta.row + row}, column {name!r} contradicts the metadata of episode "
                f"{meta.index}: {values[row]} {why}"
            )

    def _check_bounds(self, meta: EpisodeMeta, name: str, values: np.ndarray) -> None:
        sizes = {array.size for array in meta.bounds[name].values()}
        if len(sizes) > 1:
            raise ValueError(f"{self.root}: the statistics of {name!r} in episode {meta.index} differ in shape")
        flat = values.reshape(-1, *sizes).astype(np.float64)
        if not np.isfinite(flat).all():
            return  # a recording may hold NaN; see `Play`, which refuses it
        found = {"min": flat.min(axis=0), "max": flat.max(axis=0), "mean": flat.mean(axis=0)}
        spread = found["max"] - found["min"]
        allowed = _STATS_TOLERANCE * spread + 1e-5 * np.abs(flat).max(axis=0) + 1e-9
        for key, value in meta.bounds[name].items():
            wrong = np.abs(found[key] - value) > allowed  # statistics that are NaN say nothing
            if wrong.any():
                dim = int(np.argmax(wrong))
                raise ValueError(
                    f"{self.root / meta.file}, rows {meta.row} to {meta.row + meta.length - 1}, column {name!r}, "
                    f"dimension {dim}: the {key} is {found[key][dim]:g}, the metadata of episode {meta.index} says "
                    f"{value[dim]:g}; columns are swapped or values damaged (if they were edited on purpose, open with "
                    "`check_stats=False`)"
                )

    def _from_video(self, meta: EpisodeMeta, camera: str, timestamps: np.ndarray) -> np.ndarray:
        span = meta.videos[camera]
        path = self.root / span.file
        self.checksums.check(path)
        if not math.isfinite(span.start):
            raise ValueError(f"{self.root}: episode {meta.index} starts at {span.start} s of {span.file}")
        try:
            found = len(self.videos.open(path).times)
            if found != span.frames:
                raise ValueError(f"{path} has {found} frames, the metadata needs {span.frames}; it is incomplete")
            frames = self.videos.frames(path, span.start + timestamps.astype(np.float64), self.tolerance_s)
        except ValueError as error:
            raise ValueError(f"episode {meta.index}, camera {camera!r}: {error}") from error
        self._check_image(frames[0], camera, f"{path}")
        return frames

    def _decode(self, column: pa.ChunkedArray, camera: str, meta: EpisodeMeta, rows: np.ndarray) -> np.ndarray:
        frames = []
        if not pa.types.is_struct(column.type) or {"bytes", "path"} - {field.name for field in column.type}:
            raise ValueError(f"{self.root / meta.file}, camera {camera!r}: holds {column.type} instead of images")
        for row, image in zip(rows, column.to_pylist(), strict=True):
            where = f"{self.root / meta.file}, row {meta.row + row}, camera {camera!r}"
            try:
                frames.append(decode_frame(self._image_bytes(image)))
            except FileNotFoundError as error:
                raise FileNotFoundError(f"{where}: {error}") from error
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
            self._check_image(frames[-1], camera, where)
        return np.stack(frames)

    def _image_bytes(self, image: dict[str, object] | None) -> bytes:
        data = (image or {}).get("bytes")
        if isinstance(data, bytes):
            return data
        file = (image or {}).get("path")
        if not isinstance(file, str):
            raise ValueError("there is no image")
        path = self.root / file
        if not path.is_file():
            raise FileNotFoundError(f"the image file {path} is missing")
        return path.read_bytes()

    def _check_image(self, image: np.ndarray, camera: str, where: str) -> None:
        promised = self.info.features[IMAGE_PREFIX + camera].image_shape
        if image.shape != promised:
            raise ValueError(f"{where}: the image is {image.shape}, the metadata promises {promised}")


def _as_matrix(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), -1)
