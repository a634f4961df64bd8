"""Statistics of whole recordings, from their numbers alone: no picture and no video is decoded."""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from jaxtyping import Float

from selfalign.data.normalize import Mode, NormStats, RunningStats
from selfalign.data.schema import ACTION, STATE
from selfalign.data.sources import SourceData
from selfalign.embodiments import Embodiment

Trajectory = tuple[np.ndarray, np.ndarray]
"""States [T, S] and actions [T, A] of one episode."""

BLOCK = 1024
"""Chunk starts that are looked at together."""


def trajectories(source: SourceData, indices: Iterable[int]) -> Iterator[Trajectory]:
    """States and actions of episodes, read one at a time in the order of `indices`."""
    chosen = [source.refs[i] for i in indices]
    for number, refs in groupby(chosen, key=lambda ref: ref.reader):
        yield from source.readers[number].trajectories(ref.episode for ref in refs)


def norm_stats(
    recordings: Iterable[Trajectory],
    mode: Mode = "zscore",
    *,
    robot: Embodiment | None = None,
    horizon: int | None = None,
    clip: float | None = None,
) -> NormStats:
    """Statistics of one embodiment's recordings, in memory that does not grow with them.

    Where a robot's actions depend on the state at their chunk's start, they are those of all chunks (t, k) with
    t + k in the episode and k < horizon; steps beyond an episode's end do not count. Otherwise every frame counts once.

    Args:
        recordings: states and actions in the robot's numbers, episode by episode.
        mode: how `NormStats` is to normalise.
        robot: whose steps the numbers pass first; None: they are taken as they are.
        horizon: H of the model; needed where `robot.chunked`.
        clip: see `NormStats`.

    Raises:
        ValueError: no recording; NaN or infinity (the message names episode, frame and dimension); dimensions that are
            not the robot's; or no horizon where it is needed.
    """
    if robot is not None and robot.chunked and horizon is None:
        raise ValueError(
            f"the actions of {robot.name} depend on the chunk's start: statistics need the model's horizon"
        )
    states, actions = RunningStats(), RunningStats()
    for index, (state, action) in enumerate(recordings):
        _check(index, state, action, robot)
        if robot is None:
            states.update(state)
            actions.update(action)
            continue
        for block_state, block_actions in _seen(robot, state, action, horizon if robot.chunked and horizon else 1):
            states.update(block_state)
            actions.update(block_actions)
    moved = None if robot is None else robot.displacements
    return NormStats(states.finish(), actions.finish(), mode, clip=clip, displacements=moved)


def dim_names(source: SourceData, column: str, robot: Embodiment | None) -> Sequence[str]:
    """Names of a column's dimensions: the robot's, or the data set's; none where neither has one for each."""
    if robot is not None:
        return robot.state_names if column == STATE else robot.action_names
    feature = source.info.features[column]
    names = _flat(feature.names)
    return names if len(names) == math.prod(feature.shape) else ()  # some have one for the whole, as ["actions"]


def _flat(names: Any) -> list[str]:
    """Names without the groups and lists that they may lie in, as in LeRobot 2's {"motors": [...]}."""
    if isinstance(names, dict):
        names = list(names.values())
    if isinstance(names, list):
        return [name for part in names for name in _flat(part)]
    return [names] if isinstance(names, str) else []


def _seen(
    robot: Embodiment, state: Float[np.ndarray, "T S"], action: Float[np.ndarray, "T A"], horizon: int
) -> Iterator[tuple[Float[np.ndarray, "B S"], Float[np.ndarray, "N A"]]]:
    """States and actions as the model sees them, for some starts at a time."""
    last = len(action) - 1
    for first in range(0, len(action), BLOCK):
        starts = np.arange(first, min(first + BLOCK, len(action)))
        frames = starts[:, None] + np.arange(horizon)
        numbers = robot.forward(state[starts], action[np.minimum(frames, last)])
        assert numbers.actions is not None
        yield numbers.state, numbers.actions[frames <= last]


def _check(index: int, state: np.ndarray, action: np.ndarray, robot: Embodiment | None) -> None:
    for name, values, dims in (
        (STATE, state, robot and len(robot.state_names)),
        (ACTION, action, robot and len(robot.action_names)),
    ):
        if robot is not None and values.shape[1] != dims:
            raise ValueError(f"{name} has {values.shape[1]} dimensions in the data, {robot.name} has {dims}")
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            frame, dim = bad[0]
            raise ValueError(
                f"{values[frame, dim]} in episode {index} of those counted, frame {frame}, column {name!r}, "
                f"dimension {dim}; remove the episode or repair the recording"
            )
