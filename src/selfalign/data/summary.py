"""What is in a data set, read from its numbers: episodes, robots, tasks, cameras, and how far states and actions go."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from selfalign.data.normalize import FieldStats, RunningStats
from selfalign.data.schema import ACTION, IMAGE_PREFIX, STATE
from selfalign.data.sources import SourceData
from selfalign.data.statistics import dim_names, trajectories

BINS = 16
"""Of the histograms."""


@dataclass(frozen=True)
class CameraSummary:
    """One camera."""

    name: str
    height: int
    width: int
    stored: str
    """"image" or "video"."""


@dataclass(frozen=True)
class BodySummary:
    """One robot of the data set."""

    name: str
    play: int
    """Episodes without a task."""
    demonstrations: int
    frames: int


@dataclass(frozen=True, eq=False)
class ColumnSummary:
    """The state or the action: all frames whose numbers are finite."""

    column: str
    names: tuple[str, ...]
    """Of the dimensions; their numbers where the data set does not name them."""
    stats: FieldStats | None
    """None where no frame is finite."""
    histogram: Int[np.ndarray, "D bins"]
    """Frames between the least and the greatest value of each dimension, in equal bins."""
    broken: int
    """Frames with a NaN or an infinity, which nothing else here counts."""


@dataclass(frozen=True, eq=False)
class DataSummary:
    """A data set at a glance."""

    fps: float
    lengths: Int[np.ndarray, " E"]
    """Frames of each episode."""
    bodies: tuple[BodySummary, ...]
    cameras: tuple[CameraSummary, ...]
    tasks: tuple[tuple[str, int], ...]
    """Instruction and episodes, the commonest first; play has none."""
    columns: tuple[ColumnSummary, ...]
    extra: tuple[str, ...]
    """Further columns."""
    ignored: tuple[str, ...]
    """Columns that are not read."""

    @classmethod
    def of(cls, source: SourceData) -> "DataSummary":
        """Reads all states and actions twice, and no picture.

        Raises:
            FileNotFoundError, ValueError: a damaged data set (see `LeRobotReader`).
        """
        info = source.info
        cameras = {IMAGE_PREFIX + camera: info.features[IMAGE_PREFIX + camera] for camera in info.cameras}
        tasks = Counter(ref.task for ref in source.refs if ref.task)
        return cls(
            fps=float(info.fps),
            lengths=np.array([ref.length for ref in source.refs], dtype=np.int64),
            bodies=tuple(_body(source, index) for index in sorted({ref.embodiment_index for ref in source.refs})),
            cameras=tuple(
                CameraSummary(name.removeprefix(IMAGE_PREFIX), *camera.image_shape[:2], camera.dtype)
                for name, camera in cameras.items()
            ),
            tasks=tuple(tasks.most_common()),
            columns=tuple(_column(source, position, name) for position, name in enumerate((STATE, ACTION))),
            extra=info.extra,
            ignored=info.ignored,
        )

    @property
    def frames(self) -> int:
        return int(self.lengths.sum())

    @property
    def seconds(self) -> float:
        """How long all of it lasts."""
        return self.frames / self.fps

    @property
    def play(self) -> int:
        """Episodes of play."""
        return sum(body.play for body in self.bodies)


def _body(source: SourceData, index: int) -> BodySummary:
    refs = [ref for ref in source.refs if ref.embodiment_index == index]
    play = sum(ref.is_play for ref in refs)
    name = str(source.embodiments[index].get("name", f"robot {index}"))
    return BodySummary(name, play, len(refs) - play, sum(ref.length for ref in refs))


def _column(source: SourceData, position: int, name: str) -> ColumnSummary:
    running, broken, dims = RunningStats(), 0, 0
    for values, bad in _finite(source, position):
        broken, dims = broken + bad, values.shape[1]
        if len(values):
            running.update(values)
    names = tuple(dim_names(source, name, None)) or tuple(map(str, range(dims)))
    if sum(ref.length for ref in source.refs) == broken:
        return ColumnSummary(name, names, None, np.zeros((dims, BINS), np.int64), broken)
    stats = running.finish()
    histogram = np.zeros((dims, BINS), np.int64)
    for values, _ in _finite(source, position):
        histogram += histograms(values, stats.min, stats.max)
    return ColumnSummary(name, names, stats, histogram, broken)


def _finite(source: SourceData, position: int) -> Iterator[tuple[Float[np.ndarray, "T D"], int]]:
    """The finite frames of a column's episodes, and how many are not."""
    for numbers in trajectories(source, range(len(source))):
        values = numbers[position].astype(np.float64)
        good = np.isfinite(values).all(axis=1)
        yield values[good], int((~good).sum())


def histograms(
    values: Float[np.ndarray, "T D"], low: Float[np.ndarray, " D"], high: Float[np.ndarray, " D"]
) -> Int[np.ndarray, "D bins"]:
    """How many values of each dimension lie in each of `BINS` equal parts of [low, high]."""
    width = np.where(high > low, high - low, 1.0)
    index = ((values - low) / width * BINS).astype(np.int64).clip(0, BINS - 1)
    return (
        np.stack([np.bincount(column, minlength=BINS) for column in index.T])
        if index.size
        else np.zeros((len(low), BINS), np.int64)
    )


def sparkline(counts: Sequence[int] | Int[np.ndarray, " bins"]) -> str:
    """A histogram as one line of blocks; a bin that holds anything is never blank."""
    blocks = " ▁▂▃▄▅▆▇█"
    most = max(int(np.max(counts)), 1)
    return "".join(blocks[int(np.ceil(8 * int(count) / most))] for count in counts)
