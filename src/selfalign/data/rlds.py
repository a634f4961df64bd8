"""Reading RLDS data sets (TFDS folders of TFRecord files, as Open X-Embodiment has them) without TensorFlow.

A data set is a folder, usually named after its version, with `dataset_info.json`, `features.json` and files
`<name>-<split>.tfrecord-00000-of-00008`. A record is an episode: every feature of its steps end to end, pictures as PNG
or JPEG. RLDS does not say how fast steps follow one another, so the rate is told: `rlds:PATH@HZ`.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from selfalign.data.cache_dir import cache_dir
from selfalign.data.episodes import IMAGE_PREFIX, Episode
from selfalign.data.png import decode_frame
from selfalign.data.schema import ACTION, STATE, DatasetInfo, Feature
from selfalign.data.tfrecord import Values, parse_example, read_record, read_records
from selfalign.model.weights import read_json, write_json

INFO, FEATURES = "dataset_info.json", "features.json"
_STEPS, _OBSERVATION = "steps/", "steps/observation/"
_TASKS = ("language_instruction", "natural_language_instruction", "instruction", "task")
"""Names of the instruction, at a step or in its observation."""
_STATES = ("state", "proprio")
"""Names under which an observation has the whole state; otherwise all its numbers are taken."""
_WORDS = ("embedding", "timestamp")
"""Numbers of an observation that are no state."""


@dataclass(frozen=True)
class StepFeature:
    """One feature of a step, as `features.json` describes it."""

    kind: str
    """"image", "text" or "numbers"."""
    dtype: str = "float32"
    shape: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class RldsEpisode:
    """Where an episode is, and what is known of it without its frames."""

    index: int
    length: int
    task: str
    file: str
    offset: int
    """Byte of the file at which its record begins."""
    embodiment_index: int = 0
    is_play: bool = False


class RldsReader:
    """An RLDS data set on disk, with the face of `LeRobotReader`.

    The first opening reads every record once, for lengths and instructions, and keeps them in the user's cache.
    The state is `observation/state` (or `proprio`); otherwise all numbers of the observation but embeddings, in
    alphabetical order. An `action` of several parts is taken in alphabetical order, too.

    Raises:
        FileNotFoundError: no data set there, or a file is missing.
        ValueError: a damaged file (named), features that cannot be read, or a rate that is not positive.
        ImportError: the extra `rlds` is not installed.
    """

    def __init__(self, root: str | Path, fps: float, *, split: str = "train") -> None:
        """Opens a data set.

        Args:
            root: the folder with `dataset_info.json`, or the one above it, if there is one version.
            fps: steps a second.
            split: which of its parts.
        """
        if not (math.isfinite(fps) and fps > 0):
            raise ValueError(f"the rate of {root} must be a positive number of steps a second, got {fps}")
        self.root, self.split = _version_folder(Path(root)), split
        self._info = read_json(self.root / INFO)
        self.steps = read_features(self.root / FEATURES)
        self._state, self._action, self._cameras, self._task = self._choose()
        self.embodiments: list[dict[str, Any]] = [{"name": str(self._info.get("name", self.root.parent.name))}]
        self.problems: tuple[()] = ()
        self.metadata = self._index()
        self.info = self._describe(fps)

    def __len__(self) -> int:
        """Episodes."""
        return len(self.metadata)

    def __getitem__(self, index: int) -> Episode:
        return self._episode(self.metadata[index])

    @property
    def num_frames(self) -> int:
        return sum(meta.length for meta in self.metadata)

    def episodes(self, indices: Iterable[int] | None = None) -> Iterator[Episode]:
        """Episodes in the order of `indices` (default: all); reads and decodes one at a time."""
        for index in range(len(self)) if indices is None else indices:
            yield self[index]

    @cached_property
    def files(self) -> list[Path]:
        """The files of the split, as many as `dataset_info.json` says."""
        splits = {part["name"]: part for part in self._info.get("splits", ()) if "name" in part}
        if self.split not in splits:
            raise ValueError(f"{self.root} has no split {self.split!r}; it has {', '.join(splits) or 'none'}")
        count = len(splits[self.split].get("shardLengths", ()))
        found = sorted(self.root.glob(f"*-{self.split}.tfrecord-*-of-{count:05d}"))
        if len(found) != count or not count:
            raise FileNotFoundError(f"{self.root} should have {count} files of {self.split}, {len(found)} are there")
        return found

    @property
    def fingerprint(self) -> str:
        """A short hash that changes with the data: what it says of itself, and file sizes and times."""
        digest = hashlib.sha256(f"{self.split} {self.info.fps}".encode() + self._digest())
        return digest.hexdigest()[:16]

    def columns(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """States and actions [N, D] of all frames; there are no other columns."""
        for name in names:
            if name not in (STATE, ACTION):
                raise ValueError(f"no numeric column {name!r}; there are {STATE} and {ACTION}")
        pairs = list(self.trajectories(range(len(self))))
        whole = {STATE: np.concatenate([s for s, _ in pairs]), ACTION: np.concatenate([a for _, a in pairs])}
        return {name: whole[name] for name in names}

    def trajectories(self, indices: Iterable[int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """States [T, S] and actions [T, A] of episodes; no picture is decoded."""
        for meta in (self.metadata[i] for i in indices):
            example = self._example(meta)
            yield self._numbers(meta, example, self._state), self._numbers(meta, example, self._action)

    # ---- what is there ---------------------------------------------------------------------------------------------

    def _choose(self) -> tuple[list[str], list[str], list[str], str | None]:
        """Names of the features that are state, action, cameras and instruction."""
        numbers = sorted(name for name, feature in self.steps.items() if feature.kind == "numbers")
        whole = [_OBSERVATION + name for name in _STATES if _OBSERVATION + name in numbers]
        seen = [name for name in numbers if name.startswith(_OBSERVATION) and not any(w in name for w in _WORDS)]
        action = [name for name in numbers if f"{name}/".startswith(f"{_STEPS}action/")]
        cameras = sorted(name for name, f in self.steps.items() if f.kind == "image" and name.startswith(_OBSERVATION))
        task = next((p + n for n in _TASKS for p in (_STEPS, _OBSERVATION) if p + n in self.steps), None)
        if not action or not seen:
            raise ValueError(
                f"{self.root} has no {'action' if not action else 'numbers in its observations'}; its steps have "
                f"{', '.join(name.removeprefix(_STEPS) for name in self.steps)}"
            )
        return whole[:1] or seen, action, cameras, task

    def _describe(self, fps: float) -> DatasetInfo:
        def vector(names: list[str]) -> Feature:
            told = [part for name in names for part in _dim_names(name, self.steps[name].size)]
            return Feature("float32", (len(told),), told)

        used = {*self._state, *self._action, *self._cameras, self._task}
        features = {IMAGE_PREFIX + _bare(name): self._camera(name) for name in self._cameras}
        features |= {STATE: vector(self._state), ACTION: vector(self._action)}
        rest = {name.removeprefix(_STEPS): Feature("string", (1,)) for name in self.steps if name not in used}
        tasks = len({meta.task for meta in self.metadata})
        return DatasetInfo(fps, features | rest, len(self), self.num_frames, tasks, codebase_version="rlds")

    def _camera(self, name: str) -> Feature:
        shape = self.steps[name].shape
        if len(shape) != 3 or min(shape) < 1:  # some data sets leave the size open
            shape = self._pictures(self.metadata[0], self._example(self.metadata[0]), name, 1).shape[1:]
        return Feature("image", tuple(shape), ["height", "width", "channels"])

    def _digest(self) -> bytes:
        digest = hashlib.sha256((self.root / INFO).read_bytes() + (self.root / FEATURES).read_bytes())
        for path in self.files:
            told = path.stat()
            digest.update(f"{path.name} {told.st_size} {told.st_mtime_ns}".encode())
        return digest.digest()

    def _index(self) -> list[RldsEpisode]:
        kept = cache_dir("rlds") / f"{hashlib.sha256(self._digest()).hexdigest()[:16]}-{self.split}.json"
        if kept.is_file():
            return [RldsEpisode(**row) for row in read_json(kept)["episodes"]]
        found = list(self._scan())
        if not found:
            raise ValueError(f"{self.root} has no episode in {self.split}")
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_json(kept, {"episodes": [asdict(meta) for meta in found]})
        return found

    def _scan(self) -> Iterator[RldsEpisode]:
        index = 0
        (lengths,) = [part["shardLengths"] for part in self._info["splits"] if part.get("name") == self.split]
        for path, promised in zip(self.files, lengths, strict=True):
            count = 0
            for record in read_records(path):
                where = f"{path}, record {count}"
                example = _example(record.data, where)
                length = self._length(example, where)
                yield RldsEpisode(index, length, self._words(example), path.name, record.offset)
                index, count = index + 1, count + 1
            if count != int(promised):
                raise ValueError(f"{path} has {count} episodes, {INFO} says {promised}; it is incomplete")

    def _length(self, example: Mapping[str, Values], where: str) -> int:
        name = self._action[0]
        values, size = example.get(name, ()), self.steps[name].size
        if not len(values) or len(values) % size:
            raise ValueError(f"{where}: {len(values)} numbers of {name} are no steps of {size}")
        return len(values) // size

    def _words(self, example: Mapping[str, Values]) -> str:
        """The first instruction that says something."""
        told = example.get(self._task, ()) if self._task is not None else ()
        words = (item.decode("utf-8", "replace").strip() for item in told if isinstance(item, bytes))
        return next((word for word in words if word), "")

    # ---- one episode -----------------------------------------------------------------------------------------------

    def _example(self, meta: RldsEpisode) -> dict[str, Values]:
        path = self.root / meta.file
        return _example(read_record(path, meta.offset), f"{path}, episode {meta.index}")

    def _episode(self, meta: RldsEpisode) -> Episode:
        example = self._example(meta)
        return Episode(
            images={_bare(name): self._pictures(meta, example, name, meta.length) for name in self._cameras},
            state=self._numbers(meta, example, self._state),
            action=self._numbers(meta, example, self._action),
            task=meta.task,
            fps=self.info.fps,
        )

    def _numbers(self, meta: RldsEpisode, example: Mapping[str, Values], names: list[str]) -> np.ndarray:
        """[T, D] of features side by side, float32."""
        parts = []
        for name in names:
            values, size = example.get(name), self.steps[name].size
            if not isinstance(values, np.ndarray) or len(values) != meta.length * size:
                found = "none" if values is None else f"{len(values)} values"
                raise ValueError(
                    f"{self.root / meta.file}, episode {meta.index}: {name} should be {meta.length} steps of {size} "
                    f"numbers, there are {found}"
                )
            parts.append(values.reshape(meta.length, size).astype(np.float32))
        return np.concatenate(parts, axis=1)

    def _pictures(self, meta: RldsEpisode, example: Mapping[str, Values], name: str, count: int) -> np.ndarray:
        """The first `count` frames [T, H, W, 3] of a camera."""
        where = f"{self.root / meta.file}, episode {meta.index}, {name}"
        data = example.get(name, ())
        if len(data) != meta.length:
            raise ValueError(f"{where}: {len(data)} pictures for {meta.length} steps")
        frames = []
        for step, item in enumerate(data[:count]):
            try:
                frames.append(decode_frame(item if isinstance(item, bytes) else b""))
            except ValueError as error:
                raise ValueError(f"{where}, step {step}: {error}") from error
            if frames[-1].shape != frames[0].shape:
                raise ValueError(f"{where}, step {step}: {frames[-1].shape} after pictures of {frames[0].shape}")
        return np.stack(frames)


def read_features(path: Path) -> dict[str, StepFeature]:
    """The features of a step by their names in the records; text and pictures of one channel are told as such.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it describes no steps.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; the data set is incomplete")
    try:
        top = read_json(path)["featuresDict"]["features"]["steps"]["sequence"]["feature"]
        return dict(_walk(top, _STEPS.rstrip("/")))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} describes no RLDS steps: {error!r}") from error


def _walk(feature: Mapping[str, Any], name: str) -> Iterator[tuple[str, StepFeature]]:
    if "featuresDict" in feature:
        for key, child in feature["featuresDict"]["features"].items():
            yield from _walk(child, f"{name}/{key}")
    elif "image" in feature:
        shape = _shape(feature["image"])
        yield name, StepFeature("image" if shape[-1:] in ((3,), ()) else "text", "uint8", shape)
    elif "tensor" in feature:
        told = feature["tensor"]
        numeric = told["dtype"] not in ("string", "object") and told.get("encoding", "none") in ("none", "")
        shape = _shape(told)
        yield name, StepFeature("numbers" if numeric and min(shape, default=1) > 0 else "text", told["dtype"], shape)
    else:  # text, and what is not read
        yield name, StepFeature("text", "string")


def _shape(told: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(int(size) for size in (told.get("shape") or {}).get("dimensions", ()))


def _version_folder(root: Path) -> Path:
    if not root.exists():
        raise FileNotFoundError(f"no data set at {root}: the path does not exist")
    inner = [root] if (root / INFO).is_file() else sorted(path.parent for path in root.glob(f"*/{INFO}"))
    if len(inner) != 1:
        told = f"several versions, {', '.join(p.name for p in inner)}: name one" if inner else f"no {INFO}"
        raise FileNotFoundError(f"{root} is not an RLDS data set: it has {told}")
    return inner[0]


def _example(data: bytes, where: str) -> dict[str, Values]:
    try:
        return parse_example(data)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _bare(name: str) -> str:
    return name.removeprefix(_OBSERVATION).replace("/", "_")


def _dim_names(name: str, size: int) -> list[str]:
    bare = name.removeprefix(_OBSERVATION).removeprefix(_STEPS)
    return [bare] if size == 1 else [f"{bare}_{i}" for i in range(size)]
