"""Where the episodes of a LeRobot data set are: its metadata, of either format version, checked against itself."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa

from selfalign.data.checksums import Checksums
from selfalign.data.parquet import read_table
from selfalign.data.schema import (
    BOOKKEEPING,
    EMBODIMENT_INDEX,
    EMBODIMENTS_PATH,
    INFO_PATH,
    IS_PLAY,
    TASKS_PATH,
    DatasetInfo,
    Feature,
    from_arrow,
)

OLD_EPISODES_PATH = "meta/episodes.jsonl"
OLD_TASKS_PATH = "meta/tasks.jsonl"
OLD_STATS_PATH = "meta/episodes_stats.jsonl"
_COUNT = Feature("int64", (1,))
_BOUNDS = ("min", "max", "mean")

Bounds = Mapping[str, np.ndarray]
"""`min`, `max` and `mean` of one column of one episode, each flattened: of every element, or over all but the last
axis."""


@dataclass(frozen=True)
class VideoSpan:
    """Where an episode's frames of one camera are."""

    file: str
    """Relative to the root."""
    start: float
    """Seconds from the start of that file; the episode's time stamps count from here."""
    frames: int = 0
    """Frames that the whole file must have: those of all its episodes."""


@dataclass(frozen=True)
class EpisodeMeta:
    """Where an episode is and what it is, without its frames."""

    index: int
    """Its number in the data set."""
    length: int
    task: str
    """Its first instruction, where frames have different ones."""
    start: int
    """Index of its first frame in the whole data set."""
    embodiment_index: int
    is_play: bool
    file: str
    """Its parquet file, relative to the root."""
    row: int
    """Its first row in that file."""
    videos: Mapping[str, VideoSpan] = field(default_factory=lambda: MappingProxyType({}))
    """By camera (bare name)."""
    bounds: Mapping[str, Bounds] = field(default_factory=lambda: MappingProxyType({}), compare=False)
    """By column, as far as the metadata has them."""


def read_tasks(root: Path, info: DatasetInfo, checksums: Checksums) -> dict[int, str]:
    """Instructions by `task_index`.

    Raises:
        FileNotFoundError, ValueError: the file is missing or damaged.
    """
    path = root / (OLD_TASKS_PATH if info.is_old else TASKS_PATH)
    checksums.check(path)
    if info.is_old:
        pairs = [(row["task_index"], row["task"]) for row in _read_lines(path, ("task_index", "task"))]
    else:
        table = read_table(path)
        # LeRobot names the pandas index "task" or leaves it nameless, by version.
        words = next((name for name in ("task", "__index_level_0__") if name in table.column_names), None)
        if words is None or "task_index" not in table.column_names:
            raise ValueError(f"{path} lacks the columns task and task_index")
        pairs = list(zip(table["task_index"].to_pylist(), table[words].to_pylist(), strict=True))
    tasks = dict(pairs)
    if len(tasks) != len(pairs) or not all(type(index) is int and type(task) is str for index, task in pairs):
        raise ValueError(f"{path} must give each task_index one text; it is damaged")
    return tasks


def read_embodiments(root: Path, info: DatasetInfo, checksums: Checksums) -> list[dict[str, Any]]:
    """`meta/embodiments.json`, or one robot where there is none (recorded by LeRobot itself).

    Raises:
        ValueError: the file is damaged.
    """
    path = root / EMBODIMENTS_PATH
    if not path.is_file():
        return [{"name": info.robot_type or root.name}]
    checksums.check(path)
    try:
        bodies = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(bodies, list) or not bodies or not all(isinstance(body, dict) for body in bodies):
        raise ValueError(f"{path} must be a list of descriptions; it is damaged")
    return bodies


def read_episodes(root: Path, info: DatasetInfo, checksums: Checksums) -> list[EpisodeMeta]:
    """Every episode, in order.

    Raises:
        FileNotFoundError: the metadata is missing.
        ValueError: it is damaged, or contradicts itself.
    """
    episodes = _read_old(root, info, checksums) if info.is_old else _read_new(root, info, checksums)
    if len(episodes) != info.total_episodes:
        raise ValueError(
            f"{root}: {INFO_PATH} says {info.total_episodes} episodes, the episodes' metadata {len(episodes)}"
        )
    start = 0
    for number, episode in enumerate(episodes):
        if episode.index != number:
            raise ValueError(f"{root}: episode {number} is missing or there twice in the episodes' metadata")
        if episode.length < 1 or episode.start != start:
            raise ValueError(
                f"{root}: the metadata places episode {number} at frame {episode.start} with {episode.length} frames, "
                f"but the episodes before it end at {start}"
            )
        start += episode.length
    episodes = _with_video_lengths(episodes)
    if start != info.total_frames:
        raise ValueError(f"{root}: {INFO_PATH} says {info.total_frames} frames, the episodes have {start}")
    return episodes


def _read_old(root: Path, info: DatasetInfo, checksums: Checksums) -> list[EpisodeMeta]:
    for path in (OLD_EPISODES_PATH, OLD_STATS_PATH):
        checksums.check(root / path)
    rows = _read_lines(root / OLD_EPISODES_PATH, ("episode_index", "length", "tasks"))
    rows.sort(key=lambda row: row["episode_index"])
    stats: dict[int, Any] = {}
    if (root / OLD_STATS_PATH).is_file():  # v2.0 has none
        found = _read_lines(root / OLD_STATS_PATH, ("episode_index", "stats"))
        stats = {row["episode_index"]: row["stats"] for row in found}
    episodes, start = [], 0
    for row in rows:
        index = row["episode_index"]
        place = {"episode_index": index, "episode_chunk": index // info.chunks_size}
        cameras = [camera for camera in info.cameras if info.features[_column(camera)].is_video]
        episodes.append(
            EpisodeMeta(
                index=index,
                length=row["length"],
                task=_first(row["tasks"], root / OLD_EPISODES_PATH, index),
                start=start,
                embodiment_index=0,
                is_play=False,
                file=_place(info.data_path, root, place),
                row=0,
                videos={
                    camera: VideoSpan(_place(info.video_path, root, {**place, "video_key": _column(camera)}), 0.0)
                    for camera in cameras
                },
                bounds=_old_bounds(stats.get(index, {}), info, root),
            )
        )
        start += row["length"]
    return episodes


def _read_new(root: Path, info: DatasetInfo, checksums: Checksums) -> list[EpisodeMeta]:
    folder = root / "meta" / "episodes"
    paths = sorted(folder.glob("*/*.parquet"))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no parquet file; the data set is incomplete")
    episodes: list[EpisodeMeta] = []
    for path in paths:
        checksums.check(path)
        try:
            episodes += _read_new_file(root, path, info)
        except (KeyError, TypeError, IndexError, pa.ArrowException) as error:
            raise ValueError(f"{path} is damaged: {type(error).__name__} {error}") from error
    episodes.sort(key=lambda episode: episode.index)
    first: dict[str, int] = {}
    for episode in episodes:
        first.setdefault(episode.file, episode.start)
    return [_at_row(episode, episode.start - first[episode.file]) for episode in episodes]


def _read_new_file(root: Path, path: Path, info: DatasetInfo) -> list[EpisodeMeta]:
    table = read_table(path)

    def numbers(name: str, feature: Feature = _COUNT) -> list[Any]:
        if name not in table.column_names:
            raise ValueError(f"{path} lacks the column {name}")
        try:
            return from_arrow(table[name], feature).tolist()
        except ValueError as error:
            raise ValueError(f"{path}, column {name}: {error}") from error

    names = ("episode_index", "length", "data/chunk_index", "data/file_index", "dataset_from_index", "dataset_to_index")
    index, length, chunk, file, start, stop = map(numbers, names)
    optional = [
        numbers(name) if name in table.column_names else [0] * len(table) for name in (EMBODIMENT_INDEX, IS_PLAY)
    ]
    tasks = table["tasks"].to_pylist()
    spans = _spans(root, info, numbers, len(table))
    bounds = _new_bounds(table, info, path)
    episodes = []
    for i in range(len(table)):
        if stop[i] - start[i] != length[i]:
            raise ValueError(f"{path}, row {i}: frames {start[i]} to {stop[i]} are not the length {length[i]}")
        episodes.append(
            EpisodeMeta(
                index=index[i],
                length=length[i],
                task=_first(tasks[i], path, i),
                start=start[i],
                embodiment_index=optional[0][i],
                is_play=bool(optional[1][i]),
                file=_place(info.data_path, root, {"chunk_index": chunk[i], "file_index": file[i]}),
                row=0,
                videos=spans[i],
                bounds=bounds[i],
            )
        )
    return episodes


def _spans(root: Path, info: DatasetInfo, numbers: Callable[..., list[Any]], count: int) -> list[dict[str, VideoSpan]]:
    spans: list[dict[str, VideoSpan]] = [{} for _ in range(count)]
    for camera in info.cameras:
        column = _column(camera)
        if not info.features[column].is_video:
            continue
        chunks, files = (numbers(f"videos/{column}/{part}_index") for part in ("chunk", "file"))
        starts = numbers(f"videos/{column}/from_timestamp", Feature("float64", (1,)))
        for span, chunk, file, start in zip(spans, chunks, files, starts, strict=True):
            place = {"video_key": column, "chunk_index": chunk, "file_index": file}
            span[camera] = VideoSpan(_place(info.video_path, root, place), start)
    return spans


def _checked_columns(info: DatasetInfo) -> Iterable[str]:
    """Columns whose statistics are compared with their values; those of bookkeeping are compared exactly anyway."""
    return (name for name, f in info.columns.items() if not f.is_camera and name not in BOOKKEEPING)


def _new_bounds(table: pa.Table, info: DatasetInfo, path: Path) -> list[dict[str, Bounds]]:
    result: list[dict[str, Bounds]] = [{} for _ in range(len(table))]
    for name in _checked_columns(info):
        columns = {key: f"stats/{name}/{key}" for key in _BOUNDS}
        if not set(columns.values()) <= set(table.column_names):
            continue
        values = {key: table[column].to_pylist() for key, column in columns.items()}
        for i, bounds in enumerate(result):
            bounds[name] = _bounds({key: values[key][i] for key in _BOUNDS}, info.features[name], f"{path}, row {i}")
    return result


def _old_bounds(stats: Any, info: DatasetInfo, root: Path) -> dict[str, Bounds]:
    where = f"{root / OLD_STATS_PATH}"
    if not isinstance(stats, dict):
        raise ValueError(f"{where} is damaged: statistics must be named")
    found = {name: stats[name] for name in _checked_columns(info) if name in stats}
    return {name: _bounds(value, info.features[name], where) for name, value in found.items()}


def _bounds(values: Any, feature: Feature, where: str) -> Bounds:
    try:
        arrays = {key: np.array(values[key], dtype=np.float64).ravel() for key in _BOUNDS}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where}: damaged statistics ({error})") from error
    # LeRobot reduces matrices to their last axis; we do not.
    sizes = {math.prod(feature.shape), feature.shape[-1]}
    if len({array.size for array in arrays.values()} | sizes) > len(sizes):
        raise ValueError(f"{where}: statistics that are not of shape {list(feature.shape)}")
    return arrays


def _with_video_lengths(episodes: list[EpisodeMeta]) -> list[EpisodeMeta]:
    frames: Counter[str] = Counter()
    for episode in episodes:
        for span in episode.videos.values():
            frames[span.file] += episode.length
    return [
        replace(e, videos={camera: replace(span, frames=frames[span.file]) for camera, span in e.videos.items()})
        for e in episodes
    ]


def _at_row(episode: EpisodeMeta, row: int) -> EpisodeMeta:
    return replace(episode, row=row)


def _column(camera: str) -> str:
    return f"observation.images.{camera}"


def _first(tasks: Any, where: Path, row: int) -> str:
    if not isinstance(tasks, list) or not all(isinstance(task, str) for task in tasks):
        raise ValueError(f"{where}, row {row}: tasks must be texts, got {tasks!r}")
    return tasks[0] if tasks else ""


def _place(template: str | None, root: Path, values: Mapping[str, Any]) -> str:
    """Fills a path template of `meta/info.json`."""
    try:
        file = str(template).format(**values)
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{root / INFO_PATH}: the path {template!r} cannot be filled in: {error!r}") from error
    if Path(file).is_absolute() or ".." in Path(file).parts or "\0" in file:
        raise ValueError(f"{root / INFO_PATH}: the path {template!r} leads out of the data set")
    return file


def _read_lines(path: Path, keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """Rows of a file with one JSON object a line, each with `keys`; those that are counts are checked to be."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; the data set is incomplete")
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
            missing = [key for key in keys if key not in row]
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, line {number} is damaged: {error}") from error
        if missing:
            raise ValueError(f"{path}, line {number} lacks {', '.join(missing)}")
        for key in keys:
            if key in ("episode_index", "task_index", "length") and (type(row[key]) is not int or row[key] < 0):
                raise ValueError(f"{path}, line {number}: {key} must be a count, got {row[key]!r}")
        rows.append(row)
    return rows
