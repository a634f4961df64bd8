"""Another control rate: what a body that is commanded less often would have recorded."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from selfalign.data.episodes import Episode


@dataclass(frozen=True)
class ControlRate:
    """A body with one command where the recorded one had `every`: 2 makes 10 Hz of 20 Hz.

    A command says where to be at the end of its period, so displacements of a period are added up, and of targets and
    grippers the last one counts; frames within a period go, and so do those behind the last whole one. These commands
    are exact (rotations add up where they turn about one axis, or are small). It is not `exact`, as between its
    commands a slower body goes its own way, and so may be a little elsewhere at their ends.

    `invert` spreads displacements evenly, goes straight from target to target and from state to state, and repeats
    pictures and other columns. So `apply` undoes `invert` for every episode; `invert` undoes `apply` (to rounding)
    where periods are whole, each is of equal displacements (or evenly spaced targets, the first of equal ones) and
    straight states, its pictures and other columns stand still, and in the last one the states do, too.

    Raises:
        ValueError: `every` below 1.
    """

    every: int
    targets: bool = False
    """Actions are targets; otherwise displacements."""
    held: tuple[int, ...] = (-1,)
    """Numbers of an action that are targets all the same: the gripper, which is the last one."""
    exact: bool = False

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"a period has at least one command, got every={self.every}")

    def apply(self, episode: Episode) -> Episode:
        """At the lower rate.

        Raises:
            ValueError: the episode is shorter than a period.
        """
        periods = len(episode) // self.every
        if not periods:
            raise ValueError(f"an episode of {len(episode)} frames has no period of {self.every} commands")
        commands = episode.action[: periods * self.every].reshape(periods, self.every, -1)
        action = commands[:, -1].copy()
        if not self.targets:
            moving = self._moving(action)
            action[:, moving] = commands[:, :, moving].sum(axis=1, dtype=np.float64)
        return _picked(episode, np.arange(periods) * self.every, action, episode.fps / self.every)

    def invert(self, episode: Episode) -> Episode:
        """At the higher rate."""
        frames = np.repeat(np.arange(len(episode)), self.every)
        times = np.arange(len(frames)) / self.every
        action = episode.action[frames]
        moving = self._moving(action)
        if self.targets:  # the target of a period is reached at its end
            action[:, moving] = _straight(times - (self.every - 1) / self.every, episode.action[:, moving])
        else:
            action[:, moving] = action[:, moving].astype(np.float64) / self.every
        faster = _picked(episode, frames, action, episode.fps * self.every)
        return replace(faster, state=_straight(times, episode.state))

    def _moving(self, action: np.ndarray) -> np.ndarray:
        """Numbers that are not held."""
        dims = action.shape[1]
        return np.setdiff1d(np.arange(dims), [number % dims for number in self.held])


def _straight(times: Float[np.ndarray, " T"], values: Float[np.ndarray, "K D"]) -> Float[np.ndarray, "T D"]:
    """Straight lines through values at 0, 1, ..., held before the first and behind the last."""
    before = np.clip(np.floor(times).astype(int), 0, len(values) - 1)
    after = np.minimum(before + 1, len(values) - 1)
    way = np.clip(times - before, 0, 1)[:, None]
    return ((1 - way) * values[before] + way * values[after]).astype(values.dtype)


def _picked(episode: Episode, frames: np.ndarray, action: np.ndarray, fps: float) -> Episode:
    return replace(
        episode,
        images={camera: images[frames] for camera, images in episode.images.items()},
        state=episode.state[frames],
        action=action,
        extra={name: values[frames] for name, values in episode.extra.items()},
        fps=fps,
    )
