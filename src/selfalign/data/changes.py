"""Whole episodes of another body: invertible changes of what a robot has recorded.

    change = Changes((CameraTurn.build("front", pan=8), InFrames(EmbodimentPerturbation(...)), IdleJoints(1)))
    episode_of_another_body = change.apply(episode)
    change.invert(episode_of_another_body)  # the recorded one

Each says whether it is `exact`: whether the other body would truly have recorded just that. Seeds make them repeatable.
`data.perturb` has the maths of frames, `data.homography` that of cameras, `data.kinematics` that of arms, `data.rate`
that of control rates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Protocol, Self, runtime_checkable

import numpy as np
from jaxtyping import Float

from selfalign.data.episodes import Episode
from selfalign.data.kinematics import ArmKinematics
from selfalign.data.perturb import EmbodimentPerturbation, JointFrame, LinearFrame, accumulate, differences
from selfalign.data.rate import ControlRate


@runtime_checkable
class EpisodeChange(Protocol):
    """A recording of one body -> what another one would have recorded."""

    @property
    def exact(self) -> bool: ...

    def apply(self, episode: Episode) -> Episode: ...

    def invert(self, episode: Episode) -> Episode: ...


@dataclass(frozen=True)
class Changes:
    """Several changes, one after another."""

    parts: tuple[EpisodeChange, ...]

    @property
    def exact(self) -> bool:
        """Whether all of them are."""
        return all(part.exact for part in self.parts)

    def apply(self, episode: Episode) -> Episode:
        for part in self.parts:
            episode = part.apply(episode)
        return episode

    def invert(self, episode: Episode) -> Episode:
        for part in reversed(self.parts):
            episode = part.invert(episode)
        return episode


@dataclass(frozen=True)
class Inverse:
    """A change the other way round: `Inverse(ControlRate(2))` is a body with twice the rate."""

    change: EpisodeChange

    @property
    def exact(self) -> bool:
        return self.change.exact

    def apply(self, episode: Episode) -> Episode:
        return self.change.invert(episode)

    def invert(self, episode: Episode) -> Episode:
        return self.change.apply(episode)


@dataclass(frozen=True)
class InFrames:
    """States and actions in other frames; with `absolute`, displacements become targets.

    The origin of targets is the first state, which is where a body stands before it moves.
    """

    perturbation: EmbodimentPerturbation

    @property
    def exact(self) -> bool:
        return self.perturbation.exact

    def apply(self, episode: Episode) -> Episode:
        state, action = self.perturbation.apply(episode.state, episode.action, self._origin(episode.state))
        return replace(episode, state=state, action=action)

    def invert(self, episode: Episode) -> Episode:
        origin = self._origin(self.perturbation.state_frame.invert(episode.state))
        state, action = self.perturbation.invert(episode.state, episode.action, origin)
        return replace(episode, state=state, action=action)

    def _origin(self, canonical: Float[np.ndarray, "T S"]) -> Float[np.ndarray, " D"] | None:
        return canonical[0, : self.perturbation.dims] if self.perturbation.absolute else None


@dataclass(frozen=True)
class IdleJoints:
    """A body with further joints that carry nothing: they wander, and their commands and angles stand before the last
    number (the gripper) of actions and states.

    Raises:
        ValueError: no joint.
    """

    count: int
    seed: int = 0
    step: float = 0.1
    """Radians of a command of 1."""
    exact: bool = True

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"at least one joint is added, got {self.count}")

    def apply(self, episode: Episode) -> Episode:
        commands = self._commands(len(episode))
        angles = self.step * (np.cumsum(commands, axis=0) - commands)  # a state is what was before its action
        return replace(episode, state=_with_dims(episode.state, angles), action=_with_dims(episode.action, commands))

    def invert(self, episode: Episode) -> Episode:
        own = np.arange(-1 - self.count, -1)
        return replace(
            episode,
            state=np.delete(episode.state, own, axis=1),
            action=np.delete(episode.action, own, axis=1),
        )

    def _commands(self, frames: int) -> Float[np.ndarray, "T count"]:
        """Slow swings of random period and phase."""
        rng = np.random.default_rng([self.seed, 11])
        period, phase = rng.uniform(20, 60, self.count), rng.uniform(0, 2 * np.pi, self.count)
        return np.sin(2 * np.pi * np.arange(frames)[:, None] / period + phase)


@dataclass(frozen=True)
class WithoutDims:
    """A body without some numbers, which stood still: a locked joint, a gripper that was not used.

    Raises:
        ValueError: numbers that moved: a body without them would have done something else.
    """

    state: tuple[int, ...] = ()
    """Dimensions that the state loses."""
    action: tuple[int, ...] = ()
    state_values: tuple[float, ...] = ()
    """At which they stood."""
    action_values: tuple[float, ...] = ()
    tolerance: float = 1e-3
    exact: bool = True

    def __post_init__(self) -> None:
        for name in ("state", "action"):
            dims, values = getattr(self, name), getattr(self, f"{name}_values")
            if len(dims) != len(values) or len(set(dims)) != len(dims) or any(dim < 0 for dim in dims):
                raise ValueError(f"each dimension that {name} loses needs one value, got {dims} and {values}")

    @classmethod
    def of(
        cls, episode: Episode, state: Sequence[int] = (), action: Sequence[int] = (), tolerance: float = 1e-3
    ) -> "WithoutDims":
        """With the values of an episode's first frame."""
        values = [tuple(x[0, list(dims)].tolist()) for x, dims in ((episode.state, state), (episode.action, action))]
        return cls(tuple(state), tuple(action), values[0], values[1], tolerance)

    def apply(self, episode: Episode) -> Episode:
        return replace(
            episode,
            state=self._dropped(episode.state, self.state, self.state_values, "state"),
            action=self._dropped(episode.action, self.action, self.action_values, "action"),
        )

    def invert(self, episode: Episode) -> Episode:
        return replace(
            episode,
            state=_restored(episode.state, self.state, self.state_values),
            action=_restored(episode.action, self.action, self.action_values),
        )

    def _dropped(self, values: np.ndarray, dims: Sequence[int], fixed: Sequence[float], name: str) -> np.ndarray:
        if max(dims, default=-1) >= values.shape[1] or len(dims) >= values.shape[1]:
            raise ValueError(f"the {name} has {values.shape[1]} dimensions, {list(dims)} cannot go")
        moved = np.abs(values[:, list(dims)] - np.asarray(fixed)).max(axis=0, initial=0.0)
        for dim, far in zip(dims, moved, strict=True):
            if not far <= self.tolerance:
                raise ValueError(
                    f"dimension {dim} of the {name} moves by {far:.4g}, more than {self.tolerance:g}: a body without "
                    "it would not have done that"
                )
        return np.delete(values, list(dims), axis=1)


@dataclass(frozen=True)
class InJoints:
    """A body that is moved by its tool -> the same body moved by its joints; through MuJoCo and mink.

    State: tool position x, y, z (metres), then the rest. Action: displacement of the tool's target / `step`, then the
    rest. Other way round: joint angles (radians), then the rest; displacement of the joints' targets / `joint_step`,
    then the rest. The tool keeps the rotation that `home` gives it, and targets start where the first state is. Undone
    to within the accuracy of the search, about 1e-6 m.
    """

    arm: ArmKinematics
    home: tuple[float, ...]
    """Joint angles near which the search for the first frame's begins."""
    step: float = 0.03
    joint_step: float = 0.1
    exact: bool = False

    def apply(self, episode: Episode) -> Episode:
        rotation = self.arm.place(np.asarray(self.home))[1]
        state = episode.state.astype(np.float64)
        joints = self._follow(state[:, :3], rotation, np.asarray(self.home))
        targets = accumulate(episode.action[:, :3].astype(np.float64), state[0, :3], self.step)
        commanded = self._follow(targets, rotation, joints[0])
        moved = differences(commanded, joints[0], self.joint_step)
        return _with_numbers(episode, joints, moved, 3)

    def invert(self, episode: Episode) -> Episode:
        dims = len(self.home)
        joints = episode.state[:, :dims].astype(np.float64)
        targets = accumulate(episode.action[:, :dims].astype(np.float64), joints[0], self.joint_step)
        positions, aims = self.arm.positions(joints), self.arm.positions(targets)
        return _with_numbers(episode, positions, differences(aims, positions[0], self.step), dims)

    def _follow(
        self, positions: Float[np.ndarray, "T 3"], rotation: Float[np.ndarray, "3 3"], start: Float[np.ndarray, " n"]
    ) -> Float[np.ndarray, "T n"]:
        """Joint angles along a path, each found from the one before, so that the arm never jumps."""
        found = []
        for position in positions:
            start = self.arm.solve(position, rotation, start)
            found.append(start)
        return np.stack(found)


ActionKind = Literal["displacements", "targets"]
"""What an action's leading numbers say."""


@dataclass(frozen=True)
class RemadeBody:
    """A body made of a recorded one by changes of its numbers, as pretraining draws and writes them down."""

    frames: EmbodimentPerturbation = EmbodimentPerturbation()
    """Other frames of displacements or targets, and of states."""
    recorded: ActionKind = "displacements"
    swapped: bool = False
    """It acts by targets where displacements were recorded, and the other way round."""
    step: float = 1.0
    """Units of the state that a recorded displacement of 1 moves it; used with `swapped`."""
    every: int = 1
    """Commands of the recorded body for one of its own."""
    held: tuple[int, ...] = (-1,)
    """Numbers of an action that are targets all the same (see `ControlRate`)."""
    idle_joints: int = 0
    """It has so many more joints."""
    seed: int = 0
    """Of what those do."""

    @property
    def changes(self) -> Changes:
        """The same as changes of episodes, in their order."""
        parts: list[EpisodeChange] = []
        if self.every > 1:
            parts.append(ControlRate(self.every, self.recorded == "targets", self.held))
        if self.swapped:
            frame = self.frames.action_frame
            same = JointFrame.identity(frame.joints) if isinstance(frame, JointFrame) else LinearFrame()
            to_targets = InFrames(EmbodimentPerturbation(same, LinearFrame(), absolute=True, step=self.step))
            parts.append(to_targets if self.recorded == "displacements" else Inverse(to_targets))
        parts.append(InFrames(self.frames))
        if self.idle_joints:
            parts.append(IdleJoints(self.idle_joints, self.seed))
        return Changes(tuple(parts))

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "frames": self.frames.to_dict(), "held": list(self.held)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        frames = EmbodimentPerturbation.from_dict(data["frames"])
        return cls(**{**data, "frames": frames, "held": tuple(data["held"])})


def body_from_dict(data: Mapping[str, Any]) -> EmbodimentPerturbation | RemadeBody:
    """What either one's `to_dict` wrote."""
    return RemadeBody.from_dict(data) if "frames" in data else EmbodimentPerturbation.from_dict(data)


def _with_numbers(episode: Episode, state: np.ndarray, action: np.ndarray, replaced: int) -> Episode:
    """Other leading numbers; those behind the first `replaced` stay."""
    return replace(
        episode,
        state=np.concatenate([state, episode.state[:, replaced:]], axis=1).astype(episode.state.dtype),
        action=np.concatenate([action, episode.action[:, replaced:]], axis=1).astype(episode.action.dtype),
    )


def _with_dims(values: Float[np.ndarray, "T D"], more: Float[np.ndarray, "T K"]) -> Float[np.ndarray, "T D+K"]:
    """More numbers before the last one."""
    return np.concatenate([values[:, :-1], more.astype(values.dtype), values[:, -1:]], axis=1)


def _restored(values: np.ndarray, dims: Sequence[int], fixed: Sequence[float]) -> np.ndarray:
    """Undoes `np.delete` of columns that were constant."""
    total = values.shape[1] + len(dims)
    result = np.empty((len(values), total), values.dtype)
    result[:, np.setdiff1d(np.arange(total), dims)] = values
    result[:, list(dims)] = fixed
    return result
