"""Which bodies rehearsal makes of a recorded robot, told by what its numbers mean."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np

from selfalign.data.changes import ActionKind, RemadeBody
from selfalign.data.perturb import EmbodimentPerturbation, JointFrame, LinearFrame
from selfalign.data.schema import ACTION, STATE
from selfalign.data.sources import SourceData
from selfalign.data.statistics import dim_names
from selfalign.data.virtual import Perturbation

Space = Literal["xyz", "joints", "none"]
"""What the leading numbers are: a position or a displacement in space, one number for each joint, or neither."""

Change = Literal["frames", "rate", "targets", "joints"]
"""Other frames; another control rate; targets instead of displacements, or the reverse; joints that carry nothing."""

SCALE = (0.5, 2.0)
"""Least and greatest scale of an axis or a joint."""
RATES = (2, 3)
"""Commands of the recorded body for one of a slower one."""
IDLE_JOINTS = 2
"""Joints that carry nothing, at most."""
ODDS: dict[Change, float] = {"rate": 0.5, "targets": 0.25, "joints": 0.25}
"""How often a body has each change, at full width."""


@dataclass(frozen=True)
class RecordedBodies:
    """Draws other bodies from a recorded one, whatever robot it was.

    `frames`: the first three numbers of an `xyz` space are turned, mirrored and scaled. The first `joints` numbers
    of a `joints` space get another order, signs and scales; where state and action have as many joints, the same ones,
    as a robot reports its joints in the order in which it takes commands. What follows stays. The other changes are
    those of `RemadeBody`.
    """

    action: Space
    state: Space
    action_joints: int = 0
    state_joints: int = 0
    changes: tuple[Change, ...] = ("frames",)
    rates: tuple[int, ...] = RATES
    kind: ActionKind = "displacements"
    """What recorded actions are."""
    step: float = 1.0
    """Units of the state that a displacement of 1 moves it."""
    held: tuple[int, ...] = (-1,)
    """Numbers of an action that are targets all the same: grippers."""
    room: int = 0
    """More numbers that the model takes, at most."""

    @classmethod
    def of(
        cls,
        source: SourceData,
        space: Space | None = None,
        changes: Sequence[Change] | None = ("frames",),
        *,
        horizon: int = 0,
        room: int = 0,
    ) -> Self:
        """Of a data set.

        Args:
            source: its columns and what their dimensions are called.
            space: of both state and action; None: by the names of the dimensions.
            changes: which are used; None: frames, and the rate where the data allow it.
            horizon: steps of the model's chunks, to which episodes at a lower rate must suffice.
            room: numbers that the model takes beyond those of the data.

        Raises:
            ValueError: not a name for each dimension, and no space said; fewer numbers than the space has;
                or changes that the data do not allow.
        """
        plain = cls._of_space(source, space)
        if changes is not None and set(changes) <= {"frames"}:
            return replace(plain, changes=tuple(changes))
        return plain._with_changes(source, changes, horizon, room)

    @classmethod
    def _of_space(cls, source: SourceData, space: Space | None) -> Self:
        features = source.info.features
        told = {name: tuple(dim_names(source, name, None)) for name in (STATE, ACTION)}
        spaces: dict[str, Space | None] = {name: space or space_of(told[name]) for name in told}
        unknown = [name for name, found in spaces.items() if found is None]
        if unknown:
            raise ValueError(
                f"{source.readers[0].root} does not name each dimension of {' and '.join(unknown)}, so what they mean "
                "is not known: say --bodies xyz (the first three are a position), joints (all but the last, the "
                "gripper, are joints) or none"
            )
        dims = {name: int(np.prod(features[name].shape)) for name in told}
        short = [f"{name} of {dims[name]}" for name in told if spaces[name] == "xyz" and dims[name] < 3]
        if short:
            raise ValueError(
                f"{source.readers[0].root} has {' and '.join(short)} numbers, no position in space: say "
                "--bodies joints or none"
            )
        joints = {name: count_joints(told[name], dims[name]) for name in told}
        none: Space = "none"
        return cls(spaces[ACTION] or none, spaces[STATE] or none, joints[ACTION], joints[STATE])

    def _with_changes(self, source: SourceData, changes: Sequence[Change] | None, horizon: int, room: int) -> Self:
        """With changes beyond frames, if the data allow them."""
        root, shortest = source.readers[0].root, _shortest_play(source, horizon)
        least = min(ref.length for ref in source.refs)
        rates = tuple(every for every in RATES if shortest // every > horizon and least >= every)
        told = self._kind_of_actions(source)
        if changes is None:
            changes = ("frames", "rate") if told is not None and rates else ("frames",)
        if {"rate", "targets"} & set(changes) and told is None:
            raise ValueError(
                f"the actions of {root} are neither displacements nor targets of what its states tell, so --changes "
                "rate and targets mean nothing; leave them out"
            )
        if "rate" in changes and not rates:
            raise ValueError(
                f"{root} has play of {shortest} frames (and an episode of {least}), too short for chunks of {horizon} "
                f"steps at 1/{RATES[0]} of its rate; leave out --changes rate"
            )
        if "joints" in changes and room < 1:
            raise ValueError(f"the model has no room for more numbers than those of {root}; leave out --changes joints")
        kind, step = told or ("displacements", 1.0)
        names = dim_names(source, ACTION, None)
        held = tuple(i for i, name in enumerate(names) if "gripper" in name.lower()) if names else (-1,)
        return replace(
            self, changes=tuple(changes), rates=rates, kind=kind, step=step, held=held, room=min(room, IDLE_JOINTS)
        )

    def _kind_of_actions(self, source: SourceData) -> tuple[ActionKind, float] | None:
        """What actions are, and the step of displacements; None: neither, or they are of another space than states."""
        if self.action != self.state or self.action == "none":
            return None
        if self.action == "joints" and self.action_joints != self.state_joints:
            return None
        return kind_of_actions(source, 3 if self.action == "xyz" else self.action_joints)

    def __call__(self, rng: np.random.Generator, body: Mapping[str, Any], width: float = 1.0) -> Perturbation:
        """A virtual body; at width 0 the recorded one. What has no near relatives of the recorded one, such as orders
        of joints: the wider, the more often another is drawn."""
        frames = self._frames(rng, width) if "frames" in self.changes else self._same()
        used = {change for change in self.changes if change != "frames" and rng.uniform() < width * ODDS[change]}
        if not used:
            return frames
        return RemadeBody(
            frames,
            recorded=self.kind,
            swapped="targets" in used,
            step=self.step,
            every=int(rng.choice(self.rates)) if "rate" in used else 1,
            held=self.held,
            idle_joints=int(rng.integers(1, self.room + 1)) if "joints" in used else 0,
            seed=int(rng.integers(2**31)),
        )

    def _frames(self, rng: np.random.Generator, width: float) -> EmbodimentPerturbation:
        action = self._frame(rng, self.action, self.action_joints, width)
        state = self._frame(rng, self.state, self.state_joints, width)
        if isinstance(action, JointFrame) and isinstance(state, JointFrame) and action.joints == state.joints:
            state = action
        return EmbodimentPerturbation(action, state)

    def _same(self) -> EmbodimentPerturbation:
        """The recorded frames."""
        action = JointFrame.identity(self.action_joints) if self.action == "joints" else LinearFrame()
        state = JointFrame.identity(self.state_joints) if self.state == "joints" else LinearFrame()
        return EmbodimentPerturbation(action, state)

    def _frame(self, rng: np.random.Generator, space: Space, joints: int, width: float) -> LinearFrame | JointFrame:
        if space == "none":
            return LinearFrame()
        if space == "xyz":
            return LinearFrame.sample(rng, scale=SCALE, width=width)
        other = JointFrame.sample(rng, joints, scale=SCALE)
        return other if rng.uniform() < width else JointFrame.identity(joints)


def _shortest_play(source: SourceData, horizon: int) -> int:
    """Frames of the shortest episode that is longer than the horizon, of those that serve as play; 0: there is none."""
    with_play = {ref.embodiment_index for ref in source.refs if ref.is_play}
    serving = (ref.length for ref in source.refs if ref.is_play or ref.embodiment_index not in with_play)
    return min((length for length in serving if length > horizon), default=0)


def space_of(names: Sequence[str]) -> Space | None:
    """`xyz` where the names of the first three dimensions end in x, y and z, else `joints`; None without names."""
    if not names:
        return None
    return "xyz" if [name.lower()[-1:] for name in names[:3]] == ["x", "y", "z"] else "joints"


def count_joints(names: Sequence[str], dims: int) -> int:
    """Dimensions before the first gripper; without names, all but the last (at least one)."""
    gripper = next((i for i, name in enumerate(names) if "gripper" in name.lower()), None)
    if gripper is None:
        gripper = dims if names else dims - 1
    return max(1, gripper)


def kind_of_actions(source: SourceData, dims: int) -> tuple[ActionKind, float] | None:
    """Whether actions are targets or displacements of the first `dims` numbers of states, and the displacements' step.

    Targets lie close to the state that follows them. Displacements, times a step that least squares give, explain most
    of how the state moves. None: neither.
    """
    columns = source.columns([STATE, ACTION])
    state, action = (columns[name][:, :dims].astype(np.float64) for name in (STATE, ACTION))
    ends = np.cumsum([ref.length for ref in source.refs])
    within = np.setdiff1d(np.arange(len(state) - 1), ends - 1)
    following, moved, action = state[within + 1], state[within + 1] - state[within], action[within]
    spread = ((following - following.mean(axis=0)) ** 2).sum()
    if ((following - action) ** 2).sum() < 0.1 * spread:
        return "targets", 1.0
    size, total = (action**2).sum(), (moved**2).sum()
    if not size or not total:
        return None
    step = float((action * moved).sum() / size)
    if step > 0 and ((moved - step * action) ** 2).sum() < 0.5 * total:
        return "displacements", step
    return None
