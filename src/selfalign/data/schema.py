"""The LeRobot v3.0 format in names and types: what `meta/info.json` says of the columns, and their Arrow form.

On disk a data set is

    meta/info.json                                  version, rate, features, path templates
    meta/stats.json                                 statistics of each feature
    meta/tasks.parquet                              task_index, with the task's words as pandas index
    meta/episodes/chunk-000/file-000.parquet        one row per episode: where its frames are, its tasks and statistics
    data/chunk-000/file-000.parquet                 one row per frame, many episodes in a file; images as PNG bytes
    meta/embodiments.json                           (ours) one description per `embodiment_index`
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from selfalign.data.episodes import IMAGE_PREFIX, Episode

VERSION = "v3.0"
INFO_PATH = "meta/info.json"
STATS_PATH = "meta/stats.json"
TASKS_PATH = "meta/tasks.parquet"
EMBODIMENTS_PATH = "meta/embodiments.json"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"

STATE, ACTION = "observation.state", "action"
EMBODIMENT_INDEX, IS_PLAY = "embodiment_index", "is_play"

IMAGE_TYPE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


@dataclass(frozen=True)
class Feature:
    """One column as `meta/info.json` describes it; `shape` is of one frame (a scalar column has shape (1,))."""

    dtype: str
    shape: tuple[int, ...]
    names: list[str] | None = None

    @property
    def is_image(self) -> bool:
        return self.dtype == "image"

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
    def cameras(self) -> tuple[str, ...]:
        """Names of the cameras, without `observation.images.`."""
        return tuple(name.removeprefix(IMAGE_PREFIX) for name, feature in self.features.items() if feature.is_image)

    @property
    def extra(self) -> tuple[str, ...]:
        """Columns beyond images, state, action and bookkeeping."""
        known = {STATE, ACTION, *BOOKKEEPING}
        return tuple(name for name, feature in self.features.items() if name not in known and not feature.is_image)

    def to_dict(self) -> dict[str, Any]:
        fps = int(self.fps) if float(self.fps).is_integer() else self.fps
        return {**asdict(self), "fps": fps}

    @classmethod
    def read(cls, root: Path) -> Self:
        """Reads and checks `meta/info.json`.

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
            if version != VERSION:
                raise ValueError(
                    f"the data set is LeRobot {version}, only {VERSION} can be read; "
                    "convert it with `python -m lerobot.datasets.v30.convert_dataset_v21_to_v30`"
                )
            features = {
                name: Feature(value["dtype"], tuple(value["shape"]), value.get("names"))
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
        for name in (STATE, ACTION):
            if name not in self.features:
                raise ValueError(f"{path}: the data set has no {name!r} column; it has {', '.join(self.features)}")
        for name, feature in self.features.items():
            if feature.is_image and not name.startswith(IMAGE_PREFIX):
                raise ValueError(f"{path}: the camera column {name!r} must be named {IMAGE_PREFIX}<camera>; rename it")
        videos = [name for name, feature in self.features.items() if feature.dtype == "video"]
        if videos:
            raise ValueError(
                f"{path}: {', '.join(videos)} are stored as video; only images in parquet can be read "
                "(record with `use_videos=False`)"
            )


def infer_features(episode: Episode) -> dict[str, Feature]:
    """Features of a data set whose episodes look like this one.

    Raises:
        ValueError: a column whose type parquet cannot hold, or whose name is reserved.
    """
    features = {}
    for name, values in episode.columns().items():
        if name in BOOKKEEPING or "/" in name:
            raise ValueError(f"column {name!r} cannot be stored: the name is reserved or contains a slash")
        if name.startswith(IMAGE_PREFIX):
            features[name] = Feature("image", values.shape[1:], ["height", "width", "channels"])
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


def from_arrow(column: pa.ChunkedArray, feature: Feature) -> np.ndarray:
    """A column -> [T, ...] numbers; scalar columns give [T]."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # pyarrow keeps chunks that would overflow one array's offsets
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    while pa.types.is_nested(array.type):
        array = array.flatten()
    flat = array.to_numpy(zero_copy_only=False)
    if feature.shape == (1,):
        return flat.astype(feature.dtype, copy=False)
    return flat.astype(feature.dtype, copy=False).reshape(-1, *feature.shape)


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
