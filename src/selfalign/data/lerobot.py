"""Writing and reading LeRobot v3.0 data sets on disk (images in parquet; the layout is in `selfalign.data.schema`).

One data set holds many bodies: each frame has an `embodiment_index`, which points into `meta/embodiments.json`, and an
`is_play` flag. LeRobot's own tools read the result; the two columns are ordinary features to them.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from selfalign.data.episodes import IMAGE_PREFIX, Episode
from selfalign.data.normalize import RunningStats
from selfalign.data.parquet import FrameFile, read_table
from selfalign.data.png import decode_frame, encode_frames
from selfalign.data.schema import (
    ACTION,
    BOOKKEEPING,
    EMBODIMENT_INDEX,
    EMBODIMENTS_PATH,
    EPISODES_PATH,
    INFO_PATH,
    IS_PLAY,
    STATE,
    STATS_PATH,
    TASKS_PATH,
    DatasetInfo,
    Feature,
    arrow_schema,
    from_arrow,
    infer_features,
    tasks_table,
    to_arrow,
)

_ROWS_AT_ONCE = 256
"""Episodes whose metadata is held before it is written."""

_STATS_FRAMES = 4
_STATS_GRID = 8
"""Frames an episode, and pixels a side, that enter the image statistics (LeRobot samples frames, too)."""


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
    ) -> None:
        """Starts a data set.

        Args:
            root: where it will be; must not exist (or be an empty folder).
            fps: control rate of every episode, Hz.
            embodiments: one JSON-serialisable description per `embodiment_index`.
            robot_type: LeRobot's free text.
            names: names of the dimensions of vector columns, by column.
            data_file_mb: size at which a new parquet file is begun.

        Raises:
            ValueError: `root` holds something already.
        """
        self.root = Path(root)
        if self.root.exists() and (not self.root.is_dir() or any(self.root.iterdir())):
            raise ValueError(f"{self.root} exists already; choose another place or remove it first")
        json.dumps(list(embodiments))  # fails now rather than after hours of recording
        self.fps = fps
        self.embodiments = [dict(body) for body in embodiments]
        self._robot_type, self._names, self._file_bytes = robot_type, dict(names or {}), data_file_mb * 1024**2
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
            ValueError: its columns, shapes or rate differ from the first episode's, or it names an embodiment that
                was not declared.
        """
        if not self._features:
            inferred = infer_features(episode)
            self._features = {
                name: Feature(feature.dtype, feature.shape, self._names.get(name, feature.names))
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
            self._write_metadata()
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
            shape = values.shape[1:] or (1,)
            if shape != self._features[name].shape:
                raise ValueError(
                    f"{where}: column {name!r} has shape {list(shape)} a frame, "
                    f"the first episode's has {list(self._features[name].shape)}"
                )

    def _write_frames(self, columns: Mapping[str, np.ndarray]) -> tuple[int, int]:
        """Appends one row group; returns the (chunk, file) it is in."""
        arrays = []
        for name, feature in self._features.items():
            if feature.is_image:
                encoded = pa.array(encode_frames(columns[name]), pa.binary())
                paths = pa.nulls(len(encoded), pa.string())
                arrays.append(pa.StructArray.from_arrays([encoded, paths], fields=list(feature.arrow_type())))
            else:
                arrays.append(to_arrow(columns[name], feature))
        schema = arrow_schema(self._features)
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
            if feature.is_image:
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
        shape = (3, 1, 1) if feature.is_image else feature.shape
        return {**{key: value.reshape(shape).tolist() for key, value in values.items()}, "count": [stats.count]}


@dataclass(frozen=True)
class EpisodeMeta:
    """Where an episode is and what it is, without its frames."""

    length: int
    task: str
    start: int
    """Index of its first frame in the whole data set."""
    embodiment_index: int
    is_play: bool
    file: str
    """Its parquet file, relative to the root."""
    row: int
    """Its first row in that file."""


class LeRobotReader:
    """A LeRobot v3.0 data set on disk.

    `len(reader)` is the number of episodes; `reader[i]` and `reader.episodes()` give them as `Episode`.

    Raises:
        FileNotFoundError: no such path, no data set there, or one of its files is missing.
        ValueError: another version, a damaged file (named), or metadata that contradicts the files.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.info = DatasetInfo.read(self.root)
        self.tasks = self._read_tasks()
        self.embodiments = self._read_embodiments()
        self.metadata = self._read_metadata()
        self._open_file: FrameFile | None = None

    def __len__(self) -> int:
        return len(self.metadata)

    def __getitem__(self, index: int) -> Episode:
        return next(self.episodes([index]))

    @property
    def num_frames(self) -> int:
        return sum(meta.length for meta in self.metadata)

    def episodes(self, indices: Iterable[int] | None = None) -> Iterator[Episode]:
        """Episodes in the order of `indices` (default: all); reads and decodes one at a time."""
        for index in range(len(self)) if indices is None else indices:
            meta = self.metadata[index]
            path = self.root / meta.file
            if self._open_file is None or self._open_file.path != path:
                self._open_file = FrameFile(path, list(self.info.features))
            yield self._episode(meta, self._open_file.rows(meta.row, meta.length))

    def columns(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Whole columns [N, ...] over all frames, without decoding images (which cannot be asked for)."""
        for name in names:
            if name not in self.info.features or self.info.features[name].is_image:
                raise ValueError(f"no numeric column {name!r}; there are {', '.join(self.info.features)}")
        files = dict.fromkeys(meta.file for meta in self.metadata)
        tables = [FrameFile(self.root / file, names).all() for file in files]
        table = pa.concat_tables(tables)
        return {name: from_arrow(table[name], self.info.features[name]) for name in names}

    @cached_property
    def fingerprint(self) -> str:
        """A short hash that changes with the data: metadata (with each episode's statistics) and file sizes."""
        digest = hashlib.sha256()
        for path in sorted((self.root / "meta").rglob("*")):
            if path.is_file():
                digest.update(path.relative_to(self.root).as_posix().encode() + path.read_bytes())
        for file in dict.fromkeys(meta.file for meta in self.metadata):
            digest.update(f"{file}:{(self.root / file).stat().st_size}".encode())
        return digest.hexdigest()[:16]

    def _episode(self, meta: EpisodeMeta, table: pa.Table) -> Episode:
        features, images = self.info.features, {}
        for camera in self.info.cameras:
            images[camera] = self._decode(table[IMAGE_PREFIX + camera], camera, meta)
        state, action = (from_arrow(table[name], features[name]) for name in (STATE, ACTION))
        return Episode(
            images=images,
            state=_as_matrix(state).astype(np.float32, copy=False),
            action=_as_matrix(action).astype(np.float32, copy=False),
            task=meta.task,
            fps=float(self.info.fps),
            embodiment_index=meta.embodiment_index,
            is_play=meta.is_play,
            extra={name: from_arrow(table[name], features[name]) for name in self.info.extra},
        )

    def _decode(self, column: pa.ChunkedArray, camera: str, meta: EpisodeMeta) -> np.ndarray:
        frames = []
        for frame, image in enumerate(column.to_pylist()):
            where = f"{self.root / meta.file}, row {meta.row + frame}, camera {camera!r}"
            data = image["bytes"]
            if data is None:
                path = self.root / str(image["path"])
                if not path.is_file():
                    raise FileNotFoundError(f"{where}: the image file {path} is missing")
                data = path.read_bytes()
            try:
                frames.append(decode_frame(data))
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
            if frames[-1].shape != frames[0].shape:
                raise ValueError(f"{where}: the image is {frames[-1].shape}, the first one is {frames[0].shape}")
        return np.stack(frames)

    def _read_tasks(self) -> list[str]:
        table = read_table(self.root / TASKS_PATH)
        # LeRobot names the pandas index "task" or leaves it nameless, by version.
        words = next((name for name in ("task", "__index_level_0__") if name in table.column_names), None)
        if words is None or "task_index" not in table.column_names:
            raise ValueError(f"{self.root / TASKS_PATH} lacks the columns task and task_index")
        pairs = zip(table["task_index"].to_pylist(), table[words].to_pylist(), strict=True)
        return [task for _, task in sorted(pairs)]

    def _read_embodiments(self) -> list[dict[str, Any]]:
        path = self.root / EMBODIMENTS_PATH
        if not path.is_file():  # recorded by LeRobot itself: one robot
            return [{"name": self.info.robot_type or self.root.name}]
        return json.loads(path.read_text(encoding="utf-8"))

    def _read_metadata(self) -> list[EpisodeMeta]:
        folder = self.root / "meta" / "episodes"
        paths = sorted(folder.glob("*/*.parquet"))
        if not paths:
            raise FileNotFoundError(f"{folder} holds no parquet file; the data set is incomplete")
        rows = []
        for path in paths:
            table = read_table(path)
            rows += table.select([name for name in table.column_names if not name.startswith("stats/")]).to_pylist()
        rows.sort(key=lambda row: row["episode_index"])
        if len(rows) != self.info.total_episodes:
            raise ValueError(f"{self.root}: {INFO_PATH} says {self.info.total_episodes} episodes, {folder} {len(rows)}")
        first: dict[str, int] = {}
        result = []
        for row in rows:
            file = self.info.data_path.format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
            start = row["dataset_from_index"]
            result.append(
                EpisodeMeta(
                    length=row["length"],
                    task=row["tasks"][0] if row["tasks"] else "",
                    start=start,
                    embodiment_index=row.get(EMBODIMENT_INDEX, 0),
                    is_play=bool(row.get(IS_PLAY, False)),
                    file=file,
                    row=start - first.setdefault(file, start),
                )
            )
        return result


def _as_matrix(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), -1)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
