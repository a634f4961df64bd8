"""The robot's own stage: small invertible changes of states and action chunks, in robot units.

A step maps `Numbers` to `Numbers` and back. The two that most robots need are here; a step that only one robot needs
stands in that robot's file.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Float


class Numbers(NamedTuple):
    """A state and, where there is one, the chunk of actions that starts at it."""

    state: Float[np.ndarray, "*lead S"]
    actions: Float[np.ndarray, "*lead H A"] | None = None


class Step(Protocol):
    """One change and its inverse; neither writes into what it is given."""

    @property
    def reads_state(self) -> bool:
        """Whether actions change with the state at the chunk's start: then a frame's action has no value of its own."""
        ...

    @property
    def displaces(self) -> tuple[bool, ...]:
        """Which numbers of an action it makes displacements (`Embodiment.displacements`); those beyond are not."""
        ...

    def forward(self, numbers: Numbers) -> Numbers:
        """The robot's numbers -> the model's."""
        ...

    def inverse(self, numbers: Numbers) -> Numbers:
        """The model's numbers -> the robot's; `numbers.state` is the model's, too."""
        ...


def make_bool_mask(*dims: int) -> tuple[bool, ...]:
    """Runs of True (positive lengths) and False (negative): `make_bool_mask(2, -1)` is (True, True, False)."""
    return tuple(length > 0 for length in dims for _ in range(abs(length)))


@dataclass(frozen=True)
class DeltaActions:
    """Absolute targets -> displacements from the state at the chunk's start: `a[k] - s` where the mask is True.

    The gripper is left absolute by convention. The mask may be shorter than an action; what it does not reach stays.

    Raises:
        ValueError: the mask is longer than a state or an action.
    """

    mask: tuple[bool, ...]
    reads_state: bool = True

    @property
    def displaces(self) -> tuple[bool, ...]:
        return self.mask

    def forward(self, numbers: Numbers) -> Numbers:
        return self._shift(numbers, -1)

    def inverse(self, numbers: Numbers) -> Numbers:
        return self._shift(numbers, 1)

    def _shift(self, numbers: Numbers, sign: int) -> Numbers:
        state, actions = numbers
        if actions is None:
            return numbers
        dims = len(self.mask)
        if dims > min(state.shape[-1], actions.shape[-1]):
            raise ValueError(
                f"the delta mask has {dims} dimensions, the state {state.shape[-1]} and the actions "
                f"{actions.shape[-1]}: it says which actions are targets of which state dimensions"
            )
        origin = np.where(self.mask, state[..., :dims], 0)[..., None, :]
        return Numbers(state, _with_leading(actions, actions[..., :dims] + sign * origin))


@dataclass(frozen=True)
class DeltaPose:
    """Absolute poses -> poses relative to the state's, in the base frame; what follows the pose stays.

    The first six dimensions are a position p (metres) and a rotation vector r (radians, axis times angle). With R(r)
    the rotation, the position becomes `p[k] - p`, the rotation that of `R(r[k]) R(r)^T`. Rotation vectors come back
    with an angle of at most pi; a longer one comes back as the short one of the same rotation. Subtracting rotation
    vectors instead (`DeltaActions`) is right for small turns only.
    """

    reads_state: bool = True
    displaces: tuple[bool, ...] = make_bool_mask(6)

    def forward(self, numbers: Numbers) -> Numbers:
        state, actions = self._checked(numbers)
        if actions is None:
            return numbers
        origin, turn = state[..., None, :3], _quaternion(-state[..., None, 3:6])
        turned = _rotation_vector(_product(_quaternion(actions[..., 3:6]), turn))
        return Numbers(state, _with_leading(actions, np.concatenate([actions[..., :3] - origin, turned], axis=-1)))

    def inverse(self, numbers: Numbers) -> Numbers:
        state, actions = self._checked(numbers)
        if actions is None:
            return numbers
        origin, turn = state[..., None, :3], _quaternion(state[..., None, 3:6])
        turned = _rotation_vector(_product(_quaternion(actions[..., 3:6]), turn))
        return Numbers(state, _with_leading(actions, np.concatenate([actions[..., :3] + origin, turned], axis=-1)))

    def _checked(self, numbers: Numbers) -> Numbers:
        for name, values in zip(("state", "actions"), numbers, strict=True):
            if values is not None and values.shape[-1] < 6:
                raise ValueError(f"a pose has 6 dimensions, the {name} have {values.shape[-1]}")
        return numbers


def _with_leading(values: np.ndarray, leading: np.ndarray) -> np.ndarray:
    """`values` with other first dimensions, in its own type."""
    return np.concatenate([leading.astype(values.dtype), values[..., leading.shape[-1] :]], axis=-1)


def _quaternion(rotation_vector: Float[np.ndarray, "*lead 3"]) -> Float[np.ndarray, "*lead 4"]:
    """(w, x, y, z) = (cos(angle / 2), axis sin(angle / 2))."""
    half = np.linalg.norm(rotation_vector, axis=-1, keepdims=True) / 2
    return np.concatenate([np.cos(half), rotation_vector / 2 * np.sinc(half / np.pi)], axis=-1)


def _rotation_vector(quaternion: Float[np.ndarray, "*lead 4"]) -> Float[np.ndarray, "*lead 3"]:
    """The rotation vector of the shorter way, angle at most pi."""
    real, axis = quaternion[..., :1], quaternion[..., 1:]
    axis, real = np.where(real < 0, -axis, axis), np.abs(real)
    length = np.linalg.norm(axis, axis=-1, keepdims=True)
    small = length < 1e-12
    return axis * np.where(small, 2.0, 2 * np.arctan2(length, real) / np.where(small, 1.0, length))


def _product(a: Float[np.ndarray, "*#lead 4"], b: Float[np.ndarray, "*#lead 4"]) -> Float[np.ndarray, "*#lead 4"]:
    """Hamilton's product: first b, then a."""
    u, v = a[..., 1:], b[..., 1:]
    real = a[..., :1] * b[..., :1] - (u * v).sum(axis=-1, keepdims=True)
    return np.concatenate([real, a[..., :1] * v + b[..., :1] * u + np.cross(u, v)], axis=-1)
