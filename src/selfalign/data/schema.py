"""The LeRobot formats in names and types: what `meta/info.json` says of the columns, and their Arrow form.

A v3.0 data set, the only kind that is written, is on disk

    meta/info.json                                  version, rate, features, path templates
    meta/stats.json                                 statistics of each feature
    meta/tasks.parquet                              task_index, with the task's words as pandas index
    meta/episodes/chunk-000/file-000.parquet        one row per episode: where its frames are, its tasks and statistics
    data/chunk-000/file-000.parquet                 one row per frame, many episodes in a file; images as PNG bytes
    videos/<column>/chunk-000/file-000.mp4          many episodes in a file, where a camera is stored as video
    meta/embodiments.json                           (ours) one description per `embodiment_index`
    meta/checksums.json                             (ours) see `selfalign.data.checksums`

A v2.1 (or v2.0) data set has one parquet file and, per camera, one video file for each episode, and its metadata in
lines of JSON: `meta/episodes.jsonl`, `meta/tasks.jsonl`, `meta/episodes_stats.jsonl`.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from selfalign.data.episodes import IMAGE_PREFIX, Episode

VERSION = "v3.0"
OLD_VERSIONS = ("v2.0", "v2.1")
INFO_PATH = "meta/info.json"
STATS_PATH = "meta/stats.json"
TASKS_PATH = "meta/tasks.parquet"
EMBODIMENTS_PATH = "meta/embodiments.json"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"

STATE, ACTION = "observation.state", "action"
EMBODIMENT_INDEX, IS_PLAY = "embodiment_index", "is_play"

IMAGE_TYPE = pa.struct({"bytes": pa.binary(), "path": pa.string()})

_WORDS = ("string", "language")
"""Types of columns that nothing here reads: free text and LeRobot's language annotations."""


@dataclass(frozen=True)
class Feature:
    """One column as `meta/info.json` describes it; `shape` is of one frame (a scalar column has shape (1,))."""

    dtype: str
    shape: tuple[int, ...]
    names: Any = None
    """Of the dimensions, as a list (or, in some recordings, nested under a key)."""
    info: Mapping[str, Any] | None = None
    """What LeRobot says of a video: codec, rate, whether it is a depth map."""

    @property
    def is_image(self) -> bool:
        """Stored as image bytes in the frame files."""
        return self.dtype == "image"

    @property
    def is_video(self) -> bool:
        """Stored beside the frame files."""
        return self.dtype == "video"

    @property
    def is_camera(self) -> bool:
        return self.is_image or self.is_video

    @property
    def is_ignored(self) -> bool:
        """Words and depth maps: tolerated, not read."""
        info = self.info if isinstance(self.info, Mapping) else {}
        one_channel = any(type(size) is int and size == 1 for size in (*self.shape[:1], *self.shape[-1:]))
        depth = info.get("is_depth_map") is True or info.get("video.is_depth_map") is True or one_channel
        return self.dtype in _WORDS or (self.is_camera and depth)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, 3) of a camera; some recordings give the channels first."""
        first, second, third = self.shape
        return (second, third, first) if first == 3 and third != 3 else (first, second, third)

    @property
    def kind(self) -> tuple[str, tuple[int, ...]]:
        """What must agree between data sets that are read as one: whether a camera is a video need not."""
        return ("camera", self.image_shape) if self.is_camera else (self.dtype, self.shape)

    def check(self, name: str) -> None:
        """Whether the column can be read.

        Raises:
            ValueError: an unknown type, or sizes that are not positive numbers.
        """
        if self.is_ignored:
            return
        if not all(type(size) is int and size > 0 for size in self.shape) or not self.shape:
            raise ValueError(f"column {name!r} has the impossible shape {list(self.shape)}")
        if self.is_camera:
            if not name.startswith(IMAGE_PREFIX) or name == IMAGE_PREFIX:
                raise ValueError(f"the camera column {name!r} must be named {IMAGE_PREFIX}<camera>; rename it")
            if len(self.shape) != 3 or self.image_shape[2] != 3:
                raise ValueError(f"the camera column {name!r} has the shape {list(self.shape)} instead of [H, W, 3]")
            return
        try:
            readable = isinstance(self.dtype, str) and np.dtype(self.dtype).kind in "fiub"
        except (TypeError, ValueError):
            readable = False
        if not readable:
            raise ValueError(f"column {name!r} has the type {self.dtype!r}, which is not one of numbers or images")

    def arrow_type(self) -> pa.DataType:
        """The column's type in parquet, as LeRobot's own writer lays it out."""
        if self.is_image:
            return IMAGE_TYPE
        value = pa.bool_() if self.dtype == "bool" else pa.from_numpy_dtype(np.dtype(self.dtype))
        if self.shape == (1,):
            return value
        if len(self.shape) == 1:
            return pa.list_(value, self.shape[0])
        for _ in self.shape:
            value = pa.list_(value)
        return value

    def hub_type(self) -> dict[str, Any]:
        """The column in the metadata of Hugging Face's `datasets`, which then decodes images by itself."""
        if self.is_image:
            return {"_type": "Image"}
        value = {"dtype": self.dtype, "_type": "Value"}
        if self.shape == (1,):
            return value
        if len(self.shape) == 1:
            return {"feature": value, "length": self.shape[0], "_type": "Sequence"}
        return {"shape": list(self.shape), "dtype": self.dtype, "_type": f"Array{len(self.shape)}D"}


BOOKKEEPING = {
    "timestamp": Feature("float32", (1,)),
    "frame_index": Feature("int64", (1,)),
    "episode_index": Feature("int64", (1,)),
    "index": Feature("int64", (1,)),
    "task_index": Feature("int64", (1,)),
    EMBODIMENT_INDEX: Feature("int64", (1,)),
    IS_PLAY: Feature("int64", (1,)),
}
"""Columns that the writer fills in; the last two are ours, the others LeRobot's."""


@dataclass(frozen=True)
class DatasetInfo:
    """`meta/info.json`."""

    fps: float
    features: dict[str, Feature]
    total_episodes: int
    total_frames: int
    total_tasks: int
    robot_type: str | None = None
    codebase_version: str = VERSION
    chunks_size: int = 1000
    data_files_size_in_mb: int = 100
    video_files_size_in_mb: int = 200
    splits: dict[str, str] = field(default_factory=dict)
    data_path: str = DATA_PATH
    video_path: str | None = None

    @property
    def columns(self) -> dict[str, Feature]:
        """The features that are read."""
        return {name: feature for name, feature in self.features.items() if not feature.is_ignored}

    @property
    def ignored(self) -> tuple[str, ...]:
        """Columns of words and of depth, which are not read."""
        return tuple(name for name, feature in self.features.items() if feature.is_ignored)

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the cameras, without `observation.images.`."""
        return tuple(name.removeprefix(IMAGE_PREFIX) for name, feature in self.columns.items() if feature.is_camera)

    @property
    def extra(self) -> tuple[str, ...]:
        """Columns beyond images, state, action and bookkeeping."""
        known = {STATE, ACTION, *BOOKKEEPING}
        return tuple(name for name, feature in self.columns.items() if name not in known and not feature.is_camera)

    @property
    def is_old(self) -> bool:
        """v2.0 or v2.1: files by episode."""
        return self.codebase_version in OLD_VERSIONS

    def to_dict(self) -> dict[str, Any]:
        fps = int(self.fps) if float(self.fps).is_integer() else self.fps
        features = {name: asdict(feature) for name, feature in self.features.items()}
        for feature in features.values():
            if feature["info"] is None:
                del feature["info"]
        return {**asdict(self), "features": features, "fps": fps}

    @classmethod
    def read(cls, root: Path) -> Self:
        """Reads and checks `meta/info.json`; keys that are not known are passed over.

        Raises:
            FileNotFoundError: `root` or its `meta/info.json` is missing.
            ValueError: not JSON, another format version, or a feature that cannot be read.
        """
        path = root / INFO_PATH
        if not root.exists():
            raise FileNotFoundError(f"no data set at {root}: the path does not exist")
        if not path.is_file():
            raise FileNotFoundError(f"{root} is not a LeRobot data set: it has no {INFO_PATH}")
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            version = raw["codebase_version"]
            if version not in (VERSION, *OLD_VERSIONS):
                raise ValueError(
                    f"the data set is LeRobot {version}; {', '.join(OLD_VERSIONS)} and {VERSION} can be read "
                    "(the `lerobot` package converts older ones)"
                )
            features = {
                name: Feature(value["dtype"], tuple(value["shape"]), value.get("names"), value.get("info"))
                for name, value in raw["features"].items()
            }
            known = {key: raw[key] for key in cls.__dataclass_fields__ if key in raw and key != "features"}
            info = cls(**known, features=features)
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is not a LeRobot info file: {type(error).__name__} {error}") from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        info._check(path)
        return info

    def _check(self, path: Path) -> None:
        if type(self.fps) not in (int, float) or not (math.isfinite(self.fps) and self.fps > 0):
            raise ValueError(f"{path}: fps must be a positive number, got {self.fps!r}")
        for name in ("total_episodes", "total_frames", "chunks_size"):
            value = getattr(self, name)
            if type(value) is not int or value < (name == "chunks_size"):
                raise ValueError(f"{path}: {name} must be a count, got {value!r}")
        for name in ("data_path", "video_path"):
            if type(getattr(self, name)) is not str and (name, self.video_path) != ("video_path", None):
                raise ValueError(f"{path}: {name} must be a path, got {getattr(self, name)!r}")
        for name in (STATE, ACTION):
            if name not in self.features:
                raise ValueError(f"{path}: the data set has no {name!r} column; it has {', '.join(self.features)}")
        for name, feature in self.features.items():
            try:
                feature.check(name)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
        if self.video_path is None and any(feature.is_video for feature in self.columns.values()):
            raise ValueError(f"{path}: there are video columns, but no video_path")


def infer_features(episode: Episode, video: bool = False) -> dict[str, Feature]:
    """Features of a data set whose episodes look like this one; `video`: its cameras are stored as video.

    Raises:
        ValueError: a column whose type parquet cannot hold, or whose name is reserved.
    """
    features = {}
    for name, values in episode.columns().items():
        if name in BOOKKEEPING or "/" in name:
            raise ValueError(f"column {name!r} cannot be stored: the name is reserved or contains a slash")
        if name.startswith(IMAGE_PREFIX):
            features[name] = Feature("video" if video else "image", values.shape[1:], ["height", "width", "channels"])
        elif values.dtype.kind in "fiub":
            features[name] = Feature(_stored_dtype(name, values), values.shape[1:] or (1,))
        else:
            raise ValueError(f"column {name!r} has type {values.dtype}; numbers, booleans and images can be stored")
    return {**features, **BOOKKEEPING}


def _stored_dtype(name: str, values: np.ndarray) -> str:
    # States and actions are float32 everywhere downstream; a float64 copy on disk would only look more exact.
    return "float32" if name in (STATE, ACTION) else values.dtype.name


def arrow_schema(features: Mapping[str, Feature]) -> pa.Schema:
    """The schema of the frame files."""
    hub = {"info": {"features": {name: feature.hub_type() for name, feature in features.items()}}}
    fields = [pa.field(name, feature.arrow_type()) for name, feature in features.items()]
    return pa.schema(fields, metadata={"huggingface": json.dumps(hub)})


def to_arrow(values: np.ndarray, feature: Feature) -> pa.Array:
    """[T, ...] numbers -> a column."""
    flat = pa.array(np.ascontiguousarray(values, dtype=feature.dtype).reshape(-1))
    if feature.shape == (1,):
        return flat
    if len(feature.shape) == 1:
        return pa.FixedSizeListArray.from_arrays(flat, feature.shape[0])
    for size in reversed(feature.shape):
        flat = pa.ListArray.from_arrays(np.arange(0, len(flat) + 1, size, dtype=np.int32), flat)
    return flat


def from_arrow(column: pa.ChunkedArray | pa.Array, feature: Feature, first_row: int = 0) -> np.ndarray:
    """A column -> [T, ...] numbers; scalar columns give [T]. Messages count rows from `first_row`.

    Raises:
        ValueError: a missing value, a row of another length, or another type than the feature's; the message names
            the row.
    """
    array, rows = _one_array(column), range(first_row, first_row + len(column))
    for size in feature.shape:
        if not pa.types.is_nested(array.type):
            if feature.shape == (1,):  # a scalar column
                break
            raise ValueError(f"holds {array.type} instead of {feature.dtype} of shape {list(feature.shape)}")
        array = _flatten(array, size, rows)
    _refuse_nulls(array, rows)
    numbers = _as_type(array, np.dtype(feature.dtype)).to_numpy(zero_copy_only=False)
    numbers = numbers.astype(feature.dtype, copy=False)
    return numbers if feature.shape == (1,) else numbers.reshape(-1, *feature.shape)


def _one_array(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # pyarrow keeps chunks that would overflow one array's offsets
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    return array.storage if isinstance(array, pa.ExtensionArray) else array


def _flatten(array: pa.Array, size: int, rows: range) -> pa.Array:
    """Takes one level of lists away, each of which must have `size` elements."""
    _refuse_nulls(array, rows)
    kind = array.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        raise ValueError(f"holds {kind} instead of lists of {size} numbers")
    lengths = pc.call_function("list_value_length", [array]).to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero(lengths != size)
    if len(wrong):
        row = rows[int(wrong[0]) * len(rows) // len(array)]
        raise ValueError(f"row {row} has {lengths[wrong[0]]} values instead of {size}")
    return array.flatten()


def _refuse_nulls(array: pa.Array, rows: range) -> None:
    if array.null_count:
        first = int(np.argmax(array.is_null().to_numpy(zero_copy_only=False)))
        raise ValueError(f"row {rows[first * len(rows) // len(array)]} has no value")


def _as_type(array: pa.Array, wanted: np.dtype) -> pa.Array:
    """Casts within a kind (floats, integers, booleans); a cast between kinds would hide a damaged column."""
    kinds = {"f": pa.types.is_floating, "i": pa.types.is_integer, "u": pa.types.is_integer, "b": pa.types.is_boolean}
    if not kinds[wanted.kind](array.type):
        raise ValueError(f"holds {array.type} instead of {wanted}")
    try:
        return pc.cast(array, pa.from_numpy_dtype(wanted), safe=wanted.kind != "f")
    except pa.ArrowException as error:
        raise ValueError(f"holds {array.type} that do not fit {wanted}: {error}") from error


def tasks_table(tasks: list[str]) -> pa.Table:
    """`meta/tasks.parquet`: read by pandas, it is a frame of `task_index` whose index is the task's words."""
    columns = [
        {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64"},
        {"name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object"},
    ]
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [{**column, "metadata": None} for column in columns],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.2.0",
    }
    indices = pa.array(range(len(tasks)), pa.int64())
    table = pa.table({"task_index": indices, "task": pa.array(tasks, pa.string())})
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})
