"""Frames with their neighbours in time, read straight from disk: what LeRobot calls delta timestamps.

Training reads decoded data (`selfalign.data.cache`), whose `chunk` and `transitions` are the same windows; this is for
data sets that are not to be decoded whole.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from selfalign.data.episodes import IMAGE_PREFIX
from selfalign.data.lerobot import LeRobotReader


class FrameWindows:
    """The N frames of a data set, each with the columns of other frames at given distances in time.

    `windows[i]` is a dictionary under LeRobot's names: a column of `offsets` as [K, ...] with `<column>_is_pad` [K],
    which is True where the time lies outside the frame's episode (the episode's first or last frame stands there);
    any other column of the frame itself; images uint8 [H, W, 3]; and `task`, the frame's own instruction.

        windows = FrameWindows(reader, {"action": [0, 0.1, 0.2], "observation.images.scene": [0, 0.3]})
        whole = windows.complete()  # frames whose next observation lies in the same episode
    """

    def __init__(
        self,
        reader: LeRobotReader,
        offsets: Mapping[str, Sequence[float]],
        *,
        tolerance_s: float = 1e-4,
    ) -> None:
        """Prepares the windows; numbers are held in memory, images are decoded when asked for.

        Args:
            reader: the data set.
            offsets: by full column name, distances in time from each frame, seconds; multiples of 1 / fps.
            tolerance_s: by how much they may miss a multiple, seconds.

        Raises:
            ValueError: a column that the data set does not have, no or uneven offsets, or a damaged file.
        """
        self.reader = reader
        columns = reader.info.columns
        self.steps = {name: _steps(name, times, reader.info.fps, tolerance_s) for name, times in offsets.items()}
        for name in offsets:
            if name not in columns:
                raise ValueError(f"{reader.root} has no column {name!r}; there are {', '.join(columns)}")
        self._numbers = reader.columns([name for name, feature in columns.items() if not feature.is_camera])
        lengths = np.array([meta.length for meta in reader.metadata], dtype=np.int64)
        self._lengths, self._ends = lengths, np.cumsum(lengths)

    def __len__(self) -> int:
        """Frames."""
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"frame {index} of {len(self)}")
        episode = int(np.searchsorted(self._ends, index, side="right"))
        first = int(self._ends[episode] - self._lengths[episode])
        item: dict[str, Any] = {}
        for name in (*self._numbers, *(IMAGE_PREFIX + camera for camera in self.reader.info.cameras)):
            frames = index - first + self.steps.get(name, np.zeros(1, np.int64))
            inside = frames.clip(0, self._lengths[episode] - 1)
            if name in self._numbers:
                values = self._numbers[name][first + inside]
            else:
                values = self.reader.frames(episode, name.removeprefix(IMAGE_PREFIX), inside.tolist())
            item[name] = values if name in self.steps else values[0]
            if name in self.steps:
                item[f"{name}_is_pad"] = frames != inside
        task = self._numbers["task_index"][index] if "task_index" in self._numbers else None
        item["task"] = self.reader.metadata[episode].task if task is None else self.reader.tasks[int(task)]
        return item

    def complete(self) -> Int[np.ndarray, " M"]:
        """The frames whose windows lie within their episode altogether."""
        reach = np.concatenate([np.zeros(1, np.int64), *self.steps.values()])
        inside = [self._inside(int(length), reach) for length in self._lengths]
        return np.flatnonzero(np.concatenate(inside))

    def _inside(self, length: int, reach: np.ndarray) -> Bool[np.ndarray, " T"]:
        frames = np.arange(length)
        return (frames + reach.min() >= 0) & (frames + reach.max() < length)


def _steps(name: str, times: Sequence[float], fps: float, tolerance_s: float) -> Int[np.ndarray, " K"]:
    seconds = np.asarray(times, dtype=np.float64)
    if seconds.ndim != 1 or not len(seconds) or not np.isfinite(seconds).all():
        raise ValueError(f"the offsets of {name!r} must be a list of seconds, got {times!r}")
    steps = np.round(seconds * fps)
    off = np.abs(steps / fps - seconds)
    if (off > tolerance_s).any():
        worst = int(np.argmax(off))
        raise ValueError(
            f"the offset {seconds[worst]} s of {name!r} is {off[worst]:.4g} s away from a frame at {fps} Hz; "
            f"offsets must be multiples of {1 / fps:.6g} s"
        )
    return steps.astype(np.int64)
