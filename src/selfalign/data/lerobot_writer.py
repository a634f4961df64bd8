"""Writing LeRobot v3.0 data sets: images in parquet or cameras in video files (the layout is in `data.schema`).

One data set holds many bodies: each frame has an `embodiment_index`, which points into `meta/embodiments.json`, and an
`is_play` flag. LeRobot's own tools read the result; the two columns are ordinary features to them.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from selfalign.data.checksums import Checksums
from selfalign.data.episodes import Episode, SparseEpisode
from selfalign.data.normalize import RunningStats
from selfalign.data.png import encode_frames
from selfalign.data.schema import (
    BOOKKEEPING,
    EMBODIMENT_INDEX,
    EMBODIMENTS_PATH,
    EPISODES_PATH,
    INFO_PATH,
    IS_PLAY,
    STATS_PATH,
    TASKS_PATH,
    VIDEO_PATH,
    DatasetInfo,
    Feature,
    arrow_schema,
    infer_features,
    tasks_table,
    to_arrow,
)
from selfalign.data.video import VideoCodec, VideoWriter

_ROWS_AT_ONCE = 256
"""Episodes whose metadata is held before it is written."""

_STATS_FRAMES = 4
_STATS_GRID = 8
"""Frames an episode, and pixels a side, that enter the image statistics (LeRobot samples frames, too)."""


def check_free(root: Path) -> None:
    """Raises `ValueError` where there is something already, so that no data set can be begun."""
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ValueError(f"{root} exists already; choose another place or remove it first")


class LeRobotWriter:
    """Writes episodes to a new data set that appears at `root` only when it is complete.

    Frames go to a hidden folder beside `root`, which `finalize` renames. Use it as a context manager: leaving it
    normally finalises, leaving it by an exception removes what was written.

        with LeRobotWriter("play", embodiments=[{"name": "my robot"}]) as writer:
            writer.add_episode(episode)

    The columns are those of the first episode; later ones must have the same.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        fps: float = 20.0,
        embodiments: Sequence[Mapping[str, Any]] = ({"name": "robot"},),
        robot_type: str | None = None,
        names: Mapping[str, list[str]] | None = None,
        data_file_mb: int = 100,
        video: bool | VideoCodec = False,
        video_file_mb: int = 200,
    ) -> None:
        """Starts a data set.

        Args:
            root: where it will be; must not exist (or be an empty folder).
            fps: control rate of every episode, Hz.
            embodiments: one JSON-serialisable description per `embodiment_index`.
            robot_type: LeRobot's free text.
            names: names of the dimensions of vector columns, by column.
            data_file_mb: size at which a new parquet file is begun.
            video: store cameras as video (smaller, not exact; height and width must be even) instead of as exact
                images; True takes the default codec.
            video_file_mb: size at which a camera's next video file is begun.

        Raises:
            ValueError: `root` holds something already.
            ImportError: `video` is asked for and PyAV is not installed.
        """
        self.root = Path(root)
        check_free(self.root)
        json.dumps(list(embodiments))  # fails now rather than after hours of recording
        self.fps = fps
        self.embodiments = [dict(body) for body in embodiments]
        self._robot_type, self._names, self._file_bytes = robot_type, dict(names or {}), data_file_mb * 1024**2
        self._codec = VideoCodec() if video is True else video or None
        self._videos = _VideoFiles(self._codec, fps, video_file_mb * 1024**2)
        self._partial = self.root.parent / f".{self.root.name}.partial-{os.getpid()}-{os.urandom(3).hex()}"
        self._features: dict[str, Feature] = {}
        self._tasks: dict[str, int] = {}
        self._rows: list[dict[str, Any]] = []
        self._stats: dict[str, RunningStats] = {}
        self._episodes = self._frames = self._file_index = 0
        self._parquet: pq.ParquetWriter | None = None
        self._metadata: pq.ParquetWriter | None = None
        (self._partial / "meta").mkdir(parents=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finalize()
        else:
            self.abort()

    def __len__(self) -> int:
        """Episodes so far."""
        return self._episodes

    def add_episode(self, episode: Episode) -> int:
        """Appends an episode and returns its index.

        Raises:
            ValueError: its columns, shapes or rate differ from the first episode's, it has numbers that their types do
                not hold, it names an embodiment that was not declared, or it was not seen at every frame.
        """
        if isinstance(episode, SparseEpisode):
            raise ValueError("an episode that was seen at some of its frames only cannot be written as a data set")
        if not self._features:
            inferred = infer_features(episode, video=self._codec is not None)
            self._features = {
                name: Feature(
                    feature.dtype, feature.shape, self._names.get(name, feature.names), self._video_info(feature)
                )
                for name, feature in inferred.items()
            }
        self._check(episode)
        index, length = self._episodes, len(episode)
        task = self._tasks.setdefault(episode.task, len(self._tasks))
        columns = episode.columns() | {
            "timestamp": np.arange(length) / self.fps,
            "frame_index": np.arange(length),
            "episode_index": np.full(length, index),
            "index": np.arange(self._frames, self._frames + length),
            "task_index": np.full(length, task),
            EMBODIMENT_INDEX: np.full(length, episode.embodiment_index),
            IS_PLAY: np.full(length, int(episode.is_play)),
        }
        videos = self._write_videos(columns)
        chunk_index, file_index = self._write_frames(columns)
        self._rows.append(
            {
                "episode_index": index,
                "tasks": [episode.task],
                "length": length,
                EMBODIMENT_INDEX: episode.embodiment_index,
                IS_PLAY: int(episode.is_play),
                "data/chunk_index": chunk_index,
                "data/file_index": file_index,
                "dataset_from_index": self._frames,
                "dataset_to_index": self._frames + length,
                **videos,
                "meta/episodes/chunk_index": 0,
                "meta/episodes/file_index": 0,
                **self._episode_stats(columns),
            }
        )
        self._frames += length
        self._episodes += 1
        if len(self._rows) >= _ROWS_AT_ONCE:
            self._flush_rows()
        return index

    def finalize(self) -> Path:
        """Writes the metadata and moves the data set to `root`; returns `root`.

        Raises:
            ValueError: no episode was added, or `root` has come into being meanwhile.
        """
        if not self._episodes:
            self.abort()
            raise ValueError(f"no episode was added, so no data set was written to {self.root}")
        try:
            self._close_file()
            self._videos.close()
            self._write_metadata()
            Checksums.of(self._partial).write()
            if self.root.is_dir():
                self.root.rmdir()  # an empty folder; anything else was refused at the start
            self._partial.rename(self.root)
        except BaseException:
            self.abort()
            raise
        return self.root

    def abort(self) -> None:
        """Removes everything written so far."""
        # On a full disk closing fails, too, and the files go away anyway.
        with contextlib.suppress(OSError):
            self._close_file()
        with contextlib.suppress(OSError):
            self._close_metadata()
        with contextlib.suppress(OSError, ValueError):
            self._videos.close()
        shutil.rmtree(self._partial, ignore_errors=True)

    def _check(self, episode: Episode) -> None:
        where = f"episode {self._episodes}"
        if episode.fps != self.fps:
            raise ValueError(f"{where} runs at {episode.fps} Hz, the data set at {self.fps} Hz")
        if not 0 <= episode.embodiment_index < len(self.embodiments):
            raise ValueError(
                f"{where} is of embodiment {episode.embodiment_index}, "
                f"but the data set declares {len(self.embodiments)} embodiments"
            )
        columns = episode.columns()
        wanted = set(self._features) - set(BOOKKEEPING)
        if set(columns) != wanted:
            raise ValueError(
                f"{where} has other columns than the first: "
                f"missing {sorted(wanted - set(columns))}, unknown {sorted(set(columns) - wanted)}"
            )
        for name, values in columns.items():
            shape, feature = values.shape[1:] or (1,), self._features[name]
            if shape != feature.shape:
                raise ValueError(
                    f"{where}: column {name!r} has shape {list(shape)} a frame, "
                    f"the first episode's has {list(feature.shape)}"
                )
            if not feature.is_camera and not _holds(np.dtype(feature.dtype), values):
                raise ValueError(
                    f"{where}: column {name!r} has {values.dtype} numbers that {feature.dtype}, the type of the first "
                    "episode's, does not hold; give all episodes one type"
                )

    def _video_info(self, feature: Feature) -> dict[str, Any] | None:
        """What LeRobot says of a video."""
        if self._codec is None or not feature.is_video:
            return None
        height, width, channels = feature.shape
        codec = {"libx264": "h264", "libsvtav1": "av1", "libx265": "hevc"}.get(self._codec.name, self._codec.name)
        return {
            "video.height": height,
            "video.width": width,
            "video.codec": codec,
            "video.pix_fmt": self._codec.pix_fmt,
            "video.is_depth_map": False,
            "video.fps": self.fps,
            "video.channels": channels,
            "has_audio": False,
        }

    def _write_videos(self, columns: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Appends every camera's frames; returns where they are, as the episode's metadata has it."""
        row: dict[str, Any] = {}
        for name, feature in self._features.items():
            if feature.is_video:
                span = self._videos.append(self._partial, name, columns[name])
                row |= {f"videos/{name}/{key}": value for key, value in span.items()}
        return row

    def _write_frames(self, columns: Mapping[str, np.ndarray]) -> tuple[int, int]:
        """Appends one row group; returns the (chunk, file) it is in."""
        arrays = []
        stored = {name: feature for name, feature in self._features.items() if not feature.is_video}
        for name, feature in stored.items():
            if feature.is_image:
                encoded = pa.array(encode_frames(columns[name]), pa.binary())
                paths = pa.nulls(len(encoded), pa.string())
                arrays.append(pa.StructArray.from_arrays([encoded, paths], fields=list(feature.arrow_type())))
            else:
                arrays.append(to_arrow(columns[name], feature))
        schema = arrow_schema(stored)
        if self._parquet is not None and self._path(self._file_index).stat().st_size >= self._file_bytes:
            self._close_file()
            self._file_index += 1
        path = self._path(self._file_index)
        if self._parquet is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            # PNG is compressed already and dictionaries of distinct values only cost time.
            self._parquet = pq.ParquetWriter(path, schema, compression="snappy", use_dictionary=False)
        self._parquet.write_table(pa.Table.from_arrays(arrays, schema=schema))
        return divmod(self._file_index, DatasetInfo.chunks_size)

    def _path(self, file_index: int) -> Path:
        chunk, file = divmod(file_index, DatasetInfo.chunks_size)
        return self._partial / DatasetInfo.data_path.format(chunk_index=chunk, file_index=file)

    def _close_file(self) -> None:
        writer, self._parquet = self._parquet, None
        if writer is not None:
            writer.close()

    def _flush_rows(self) -> None:
        """Appends the held rows to the episodes' metadata."""
        if not self._rows:
            return
        table = pa.Table.from_pylist(self._rows, schema=self._metadata.schema if self._metadata else None)
        if self._metadata is None:
            path = self._partial / EPISODES_PATH.format(chunk_index=0, file_index=0)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._metadata = pq.ParquetWriter(path, table.schema, compression="snappy")
        self._metadata.write_table(table)
        self._rows.clear()

    def _close_metadata(self) -> None:
        writer, self._metadata = self._metadata, None
        if writer is not None:
            writer.close()

    def _episode_stats(self, columns: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """LeRobot's `stats/<feature>/<statistic>` of one episode; also feeds the data set's statistics."""
        row: dict[str, Any] = {}
        for name, feature in self._features.items():
            values = columns[name]
            if feature.is_camera:
                picks = np.unique(np.linspace(0, len(values) - 1, _STATS_FRAMES).astype(int))
                down, across = (max(1, size // _STATS_GRID) for size in feature.shape[:2])
                flat = values[picks, ::down, ::across].reshape(-1, 3).astype(np.float64) / 255.0
                shape, count = (3, 1, 1), len(picks)
            else:
                flat = values.reshape(len(values), -1).astype(np.float64)
                shape, count = feature.shape, len(values)
            if np.isfinite(flat).all():  # a recording with NaN is stored as it is; its statistics are left out
                self._stats.setdefault(name, RunningStats()).update(flat)
            with np.errstate(invalid="ignore"):
                for key in ("min", "max", "mean", "std"):
                    row[f"stats/{name}/{key}"] = getattr(flat, key)(axis=0).reshape(shape).tolist()
            row[f"stats/{name}/count"] = [count]
        return row

    def _write_metadata(self) -> None:
        self._flush_rows()
        self._close_metadata()
        info = DatasetInfo(
            fps=self.fps,
            features=self._features,
            total_episodes=self._episodes,
            total_frames=self._frames,
            total_tasks=len(self._tasks),
            robot_type=self._robot_type,
            splits={"train": f"0:{self._episodes}"},
            video_path=VIDEO_PATH if self._codec is not None else None,
        )
        pq.write_table(tasks_table(list(self._tasks)), self._partial / TASKS_PATH)
        _write_json(self._partial / STATS_PATH, {name: self._dataset_stats(name) for name in self._stats})
        _write_json(self._partial / EMBODIMENTS_PATH, self.embodiments)
        _write_json(self._partial / INFO_PATH, info.to_dict())

    def _dataset_stats(self, name: str) -> dict[str, Any]:
        feature, running = self._features[name], self._stats[name]
        stats = running.finish()
        levels = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
        values = {"min": stats.min, "max": stats.max, "mean": stats.mean, "std": stats.std}
        values |= dict(zip(levels, running.quantile(*levels.values()), strict=True))
        shape = (3, 1, 1) if feature.is_camera else feature.shape
        return {**{key: value.reshape(shape).tolist() for key, value in values.items()}, "count": [stats.count]}


class _VideoFiles:
    """One video file per camera that is being written, and its successors."""

    def __init__(self, codec: VideoCodec | None, fps: float, file_bytes: int) -> None:
        self.codec, self.fps, self.file_bytes = codec, fps, file_bytes
        self._open: dict[str, VideoWriter] = {}
        self._count: dict[str, int] = {}
        if codec is not None:
            codec.check()

    def append(self, root: Path, name: str, frames: np.ndarray) -> dict[str, Any]:
        """Appends an episode; returns LeRobot's description of where it is."""
        writer = self._open.get(name)
        if writer is not None and writer.path.stat().st_size >= self.file_bytes:
            writer.close()
            writer = None
        if writer is None:
            number = self._count[name] = self._count.get(name, -1) + 1
            chunk, file = divmod(number, DatasetInfo.chunks_size)
            path = root / VIDEO_PATH.format(video_key=name, chunk_index=chunk, file_index=file)
            writer = self._open[name] = VideoWriter(path, self.fps, frames.shape[1], frames.shape[2], self.codec)
        start = writer.seconds
        writer.write(frames)
        chunk, file = divmod(self._count[name], DatasetInfo.chunks_size)
        place = {"chunk_index": chunk, "file_index": file}
        return {**place, "from_timestamp": start, "to_timestamp": writer.seconds}

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()


def _holds(stored: np.dtype, values: np.ndarray) -> bool:
    """Whether numbers can be stored as this type: no fraction is cut off, and whole numbers are within its range."""
    if not np.can_cast(values.dtype, stored, "same_kind"):
        return False
    if stored.kind not in "iu" or values.dtype.kind not in "iu" or not values.size:
        return True
    return bool(np.iinfo(stored).min <= values.min() and values.max() <= np.iinfo(stored).max)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
