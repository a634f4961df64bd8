"""Which bodies rehearsal makes of a recorded robot, told by what its numbers mean."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np

from selfalign.data.perturb import EmbodimentPerturbation, JointFrame, LinearFrame
from selfalign.data.schema import ACTION, STATE
from selfalign.data.sources import SourceData
from selfalign.data.statistics import dim_names

Space = Literal["xyz", "joints", "none"]
"""What the leading numbers are: a position or a displacement in space, one number for each joint, or neither."""

SCALE = (0.5, 2.0)
"""Least and greatest scale of an axis or a joint."""


@dataclass(frozen=True)
class RecordedBodies:
    """Draws bodies with other frames from a recorded one, whatever robot it was.

    The first three numbers of an `xyz` space get another frame: turned, mirrored and scaled. The first `joints` numbers
    of a `joints` space get another order, signs and scales; where state and action have as many joints, the same ones,
    as a robot reports its joints in the order in which it takes commands. What follows stays.
    """

    action: Space
    state: Space
    action_joints: int = 0
    state_joints: int = 0

    @classmethod
    def of(cls, source: SourceData, space: Space | None = None) -> Self:
        """Of a data set.

        Args:
            source: its columns and what their dimensions are called.
            space: of both state and action; None: by the names of the dimensions.

        Raises:
            ValueError: no names, and no space said.
        """
        features = source.info.features
        told = {name: tuple(dim_names(source, name, None)) for name in (STATE, ACTION)}
        spaces: dict[str, Space | None] = {name: space or space_of(told[name]) for name in told}
        unknown = [name for name, found in spaces.items() if found is None]
        if unknown:
            raise ValueError(
                f"{source.readers[0].root} does not name the dimensions of {' and '.join(unknown)}, so what they mean "
                "is not known: say --bodies xyz (the first three are a position), joints (all but the last, the "
                "gripper, are joints) or none"
            )
        joints = {name: count_joints(told[name], int(np.prod(features[name].shape))) for name in told}
        none: Space = "none"
        return cls(spaces[ACTION] or none, spaces[STATE] or none, joints[ACTION], joints[STATE])

    def __call__(self, rng: np.random.Generator, body: Mapping[str, Any], width: float = 1.0) -> EmbodimentPerturbation:
        """A virtual body; at width 0 the recorded one. Orders of joints have no near relatives of the recorded one:
        the wider, the more often another is drawn."""
        action = self._frame(rng, self.action, self.action_joints, width)
        state = self._frame(rng, self.state, self.state_joints, width)
        if isinstance(action, JointFrame) and isinstance(state, JointFrame) and action.joints == state.joints:
            state = action
        return EmbodimentPerturbation(action, state)

    def _frame(self, rng: np.random.Generator, space: Space, joints: int, width: float) -> LinearFrame | JointFrame:
        if space == "none":
            return LinearFrame()
        if space == "xyz":
            return LinearFrame.sample(rng, scale=SCALE, width=width)
        other = JointFrame.sample(rng, joints, scale=SCALE)
        return other if rng.uniform() < width else JointFrame.identity(joints)


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
