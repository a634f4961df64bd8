"""Invertible changes of action and state frames: many embodiments out of few.

A *frame* maps the leading dimensions of an array (`xyz` of an end effector, or the joints) and leaves the rest, the
gripper among them, as it is. `apply` takes canonical numbers to the body's own, `invert` takes them back. Everything
here is exact (linear algebra in float64, returned in the input's float type), cheap enough to be drawn afresh for
each batch, hashable and JSON-serialisable. The simulator's bodies and the rehearsal of pretraining use the same
classes, so the maths of frames exists once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from jaxtyping import Float

Matrix3 = tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]]
Vector3 = tuple[float, float, float]

MAX_TRIES = 10_000
"""Draws before a region that accepts nothing is reported."""

_IDENTITY: Matrix3 = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


def matrix3(values: Float[np.ndarray, "3 3"]) -> Matrix3:
    """An array as plain numbers: hashable, and the same in JSON."""
    (a, b, c), (d, e, f), (g, h, i) = values.tolist()
    return (a, b, c), (d, e, f), (g, h, i)


@runtime_checkable
class Frame(Protocol):
    """What `LinearFrame` and `JointFrame` have in common."""

    @property
    def exact(self) -> bool: ...

    def apply(self, values: Float[np.ndarray, "*lead D"]) -> Float[np.ndarray, "*lead D"]: ...

    def invert(self, values: Float[np.ndarray, "*lead D"]) -> Float[np.ndarray, "*lead D"]: ...

    def to_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class LinearFrame:
    """`y = M x + offset` on the first three dimensions; the others are untouched. The identity leaves any number of
    dimensions as they are, fewer than three too.

    Actions that are displacements must be mapped with `offset = 0`; positions may have one.

    Raises:
        ValueError: M is not 3x3, or is too close to singular to be inverted.
    """

    matrix: Matrix3 = _IDENTITY
    offset: Vector3 = (0.0, 0.0, 0.0)
    exact: bool = True

    def __post_init__(self) -> None:
        # Rows from JSON or numpy come as lists; a frozen value must be hashable.
        matrix, offset = np.asarray(self.matrix, dtype=np.float64), np.asarray(self.offset, dtype=np.float64)
        if matrix.shape != (3, 3) or offset.shape != (3,):
            raise ValueError(f"a linear frame needs a 3x3 matrix and 3 offsets, got {matrix.shape} and {offset.shape}")
        if not np.isfinite(matrix).all() or np.linalg.cond(matrix) > 1e6:
            raise ValueError(f"the matrix of a linear frame must be invertible, got {matrix.tolist()}")
        object.__setattr__(self, "matrix", matrix3(matrix))
        object.__setattr__(self, "offset", tuple(offset.tolist()))

    @classmethod
    def build(cls, rotation: Any, flips: Any = (1, 1, 1), scale: Any = (1, 1, 1), offset: Any = (0, 0, 0)) -> Self:
        """`M = diag(scale) diag(flips) rotation`; flips are +-1, scales positive, offset in the new frame's units."""
        matrix = (np.asarray(scale, float) * np.asarray(flips, float))[:, None] * np.asarray(rotation, float)
        return cls(matrix3(matrix), offset)

    @classmethod
    def sample(
        cls,
        rng: np.random.Generator,
        accept: Callable[["LinearFrame"], bool] | None = None,
        *,
        scale: tuple[float, float] = (0.5, 2.0),
        flips: bool = True,
        offset: float = 0.0,
        width: float = 1.0,
    ) -> Self:
        """A frame with uniform (Haar) rotation, random flips, log-uniform scale per axis and uniform offset.

        Args:
            rng: source of randomness; the same state gives the same frame.
            accept: region predicate; draws are repeated until it holds.
            scale: lowest and highest scale per axis.
            flips: whether each axis may be mirrored.
            offset: half-width of the offset per axis.
            width: from 1, all of that, down to 0, the identity: shrinks the angle of the rotation, the logarithm of
                the scales, the offset and how often an axis is mirrored.

        Raises:
            ValueError: `accept` held for none of `MAX_TRIES` draws.
        """

        def draw() -> Self:
            signs = np.where(flips & (rng.uniform(size=3) < width / 2), -1.0, 1.0)
            scales = np.exp(width * rng.uniform(np.log(scale[0]), np.log(scale[1]), size=3))
            return cls.build(random_rotation(rng, width), signs, scales, width * rng.uniform(-offset, offset, size=3))

        return _first_accepted(draw, accept)

    @property
    def scales(self) -> Vector3:
        """Length of each row of M: the scale of each output axis where M = diag(scale) times an orthogonal matrix."""
        return tuple(np.linalg.norm(np.asarray(self.matrix), axis=1).tolist())  # type: ignore[return-value]

    @property
    def axes(self) -> Float[np.ndarray, "3 3"]:
        """M without its scales: orthogonal (rotation and flips) for sampled frames; column j is where axis j goes."""
        return np.asarray(self.matrix) / np.asarray(self.scales)[:, None]

    @property
    def x_azimuth(self) -> float:
        """Azimuth in degrees, (-180, 180], of where the canonical x axis goes, scales left out."""
        x_axis = self.axes[:, 0]
        return float(np.degrees(np.arctan2(x_axis[1], x_axis[0])))

    def apply(self, values: Float[np.ndarray, "*lead D"]) -> Float[np.ndarray, "*lead D"]:
        """Canonical -> body, D >= 3."""
        if self == _CANONICAL:
            return _with_leading(values, values[..., :0])
        _check_dims(values, 3, "a linear frame")
        mapped = values[..., :3].astype(np.float64) @ np.asarray(self.matrix).T + np.asarray(self.offset)
        return _with_leading(values, mapped)

    def invert(self, values: Float[np.ndarray, "*lead D"]) -> Float[np.ndarray, "*lead D"]:
        """Body -> canonical, D >= 3."""
        if self == _CANONICAL:
            return _with_leading(values, values[..., :0])
        _check_dims(values, 3, "a linear frame")
        shifted = values[..., :3].astype(np.float64) - np.asarray(self.offset)
        return _with_leading(values, shifted @ np.linalg.inv(np.asarray(self.matrix)).T)

    def without_offset(self) -> Self:
        """The same frame for displacements."""
        return type(self)(self.matrix)

    def to_dict(self) -> dict[str, Any]:
        return {"type": "linear", "matrix": [list(row) for row in self.matrix], "offset": list(self.offset)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        return cls(data["matrix"], data["offset"])


_CANONICAL = LinearFrame()


@dataclass(frozen=True)
class JointFrame:
    """`y[i] = sign[i] * scale[i] * x[permutation[i]] + offset[i]` on the first n dimensions; the others are untouched.

    Raises:
        ValueError: lengths differ, `permutation` is none, a sign is not +-1, or a scale is not positive.
    """

    permutation: tuple[int, ...]
    sign: tuple[float, ...]
    scale: tuple[float, ...]
    offset: tuple[float, ...]
    exact: bool = True

    def __post_init__(self) -> None:
        n = len(self.permutation)
        object.__setattr__(self, "permutation", tuple(int(i) for i in self.permutation))
        for name in ("sign", "scale", "offset"):
            values = tuple(float(v) for v in getattr(self, name))
            object.__setattr__(self, name, values)
            if len(values) != n:
                raise ValueError(f"joint frame: {n} joints in the permutation, {len(values)} in {name}")
        if sorted(self.permutation) != list(range(n)):
            raise ValueError(f"joint frame: {self.permutation} is no permutation of 0..{n - 1}")
        if any(abs(s) != 1 for s in self.sign) or any(not s > 0 for s in self.scale):
            raise ValueError(f"joint frame: signs must be +-1 and scales positive, got {self.sign} and {self.scale}")

    @classmethod
    def identity(cls, joints: int) -> Self:
        return cls(tuple(range(joints)), (1.0,) * joints, (1.0,) * joints, (0.0,) * joints)

    @classmethod
    def sample(
        cls,
        rng: np.random.Generator,
        joints: int,
        accept: Callable[["JointFrame"], bool] | None = None,
        *,
        scale: tuple[float, float] = (0.5, 2.0),
        permute: bool = True,
        signs: bool = True,
        offset: float = 0.0,
    ) -> Self:
        """Random joint order, signs, log-uniform scales and uniform offsets; see `LinearFrame.sample`."""

        def draw() -> Self:
            order = rng.permutation(joints) if permute else np.arange(joints)
            flips = rng.choice((-1.0, 1.0), size=joints) if signs else np.ones(joints)
            scales = np.exp(rng.uniform(np.log(scale[0]), np.log(scale[1]), size=joints))
            return cls(tuple(order), tuple(flips), tuple(scales), tuple(rng.uniform(-offset, offset, size=joints)))

        return _first_accepted(draw, accept)

    @property
    def joints(self) -> int:
        return len(self.permutation)

    def apply(self, values: Float[np.ndarray, "*lead D"]) -> Float[np.ndarray, "*lead D"]:
        """Canonical -> body, D >= n."""
        _check_dims(values, self.joints, "a joint frame")
        moved = values[..., list(self.permutation)].astype(np.float64)
        return _with_leading(values, moved * np.multiply(self.sign, self.scale) + np.asarray(self.offset))

    def invert(self, values: Float[np.ndarray, "*lead D"]) -> Float[np.ndarray, "*lead D"]:
        """Body -> canonical, D >= n."""
        _check_dims(values, self.joints, "a joint frame")
        plain = values[..., : self.joints].astype(np.float64) - np.asarray(self.offset)
        plain = plain / np.multiply(self.sign, self.scale)
        return _with_leading(values, plain[..., np.argsort(self.permutation)])

    def without_offset(self) -> Self:
        """The same frame for displacements."""
        return type(self)(self.permutation, self.sign, self.scale, (0.0,) * self.joints)

    def to_dict(self) -> dict[str, Any]:
        fields = {name: list(getattr(self, name)) for name in ("permutation", "sign", "scale", "offset")}
        return {"type": "joint", **fields}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        return cls(data["permutation"], data["sign"], data["scale"], data["offset"])


def frame_from_dict(data: Mapping[str, Any]) -> LinearFrame | JointFrame:
    """The frame that `to_dict` wrote.

    Raises:
        ValueError: an unknown `type`.
    """
    kinds = {"linear": LinearFrame, "joint": JointFrame}
    if data.get("type") not in kinds:
        raise ValueError(f"unknown frame type {data.get('type')!r}; known: {', '.join(kinds)}")
    return kinds[data["type"]].from_dict(data)


@dataclass(frozen=True)
class EmbodimentPerturbation:
    """A virtual body: canonical states and delta actions of an episode in another robot's terms, and back.

    The body acts in `action_frame`; with `absolute`, its action is the target itself (the sum of all displacements so
    far, from the origin that is given) instead of a displacement. The gripper is untouched.
    """

    action_frame: LinearFrame | JointFrame = LinearFrame()
    state_frame: LinearFrame | JointFrame = LinearFrame()
    absolute: bool = False
    step: float = 0.03
    """Metres (or radians) that a canonical action of 1 moves the target; used with `absolute`."""

    def __post_init__(self) -> None:
        if not self.absolute and any(self.action_frame.offset):
            raise ValueError("the action frame of delta actions must have no offset (use `without_offset()`)")

    @property
    def exact(self) -> bool:
        """Whether the perturbed stream is what the virtual body would truly have recorded."""
        return self.action_frame.exact and self.state_frame.exact

    @property
    def dims(self) -> int:
        """Leading dimensions of an action that move the body; those behind them are the gripper's."""
        return self.action_frame.joints if isinstance(self.action_frame, JointFrame) else 3

    def apply(
        self,
        state: Float[np.ndarray, "T S"],
        action: Float[np.ndarray, "T A"],
        origin: Float[np.ndarray, " D"] | None = None,
    ) -> tuple[Float[np.ndarray, "T S"], Float[np.ndarray, "T A"]]:
        """Canonical -> body, for one episode.

        Args:
            state: canonical states, one a frame.
            action: canonical delta actions.
            origin: the commanded target before the first action (only with `absolute`).
        """
        if self.absolute:
            action = accumulate(action, self._origin(origin), self.step)
        return self.state_frame.apply(state), self.action_frame.apply(action)

    def invert(
        self,
        state: Float[np.ndarray, "T S"],
        action: Float[np.ndarray, "T A"],
        origin: Float[np.ndarray, " D"] | None = None,
    ) -> tuple[Float[np.ndarray, "T S"], Float[np.ndarray, "T A"]]:
        """Body -> canonical; the arguments of `apply`."""
        action = self.action_frame.invert(action)
        if self.absolute:
            action = differences(action, self._origin(origin), self.step)
        return self.state_frame.invert(state), action

    def _origin(self, origin: np.ndarray | None) -> np.ndarray:
        if origin is None or np.shape(origin) != (self.dims,):
            given = "none" if origin is None else f"shape {list(np.shape(origin))}"
            raise ValueError(f"absolute actions need the origin of the motion, {self.dims} numbers; got {given}")
        return origin

    def to_dict(self) -> dict[str, Any]:
        return {
            "action_frame": self.action_frame.to_dict(),
            "state_frame": self.state_frame.to_dict(),
            "absolute": self.absolute,
            "step": self.step,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        frames = (frame_from_dict(data["action_frame"]), frame_from_dict(data["state_frame"]))
        return cls(*frames, absolute=bool(data["absolute"]), step=float(data["step"]))


def accumulate(
    action: Float[np.ndarray, "T A"], origin: Float[np.ndarray, " D"], step: float
) -> Float[np.ndarray, "T A"]:
    """Delta actions -> absolute targets: `origin + step * cumsum(action)` on the first D dimensions."""
    return _with_leading(action, origin + step * np.cumsum(action[:, : len(origin)].astype(np.float64), axis=0))


def differences(
    action: Float[np.ndarray, "T A"], origin: Float[np.ndarray, " D"], step: float
) -> Float[np.ndarray, "T A"]:
    """Absolute targets -> delta actions; undoes `accumulate`."""
    targets = np.concatenate([np.asarray(origin)[None], action[:, : len(origin)]]).astype(np.float64)
    return _with_leading(action, np.diff(targets, axis=0) / step)


def random_rotation(rng: np.random.Generator, width: float = 1.0) -> Float[np.ndarray, "3 3"]:
    """A rotation drawn uniformly from SO(3) (a normalised Gaussian quaternion), its angle multiplied by `width`."""
    quaternion = rng.normal(size=4)
    real, axis = quaternion[0], quaternion[1:]
    length = np.linalg.norm(axis)
    half_angle = width * np.arctan2(length, abs(real))  # q and -q are one rotation; this is the shorter way
    w, (x, y, z) = np.cos(half_angle), np.copysign(np.sin(half_angle), real) * axis / length
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def _first_accepted(draw: Callable[[], Any], accept: Callable[[Any], bool] | None) -> Any:
    for _ in range(MAX_TRIES):
        candidate = draw()
        if accept is None or accept(candidate):
            return candidate
    raise ValueError(f"no frame was accepted in {MAX_TRIES} draws: the region is empty or too small to sample from")


def _check_dims(values: np.ndarray, needed: int, what: str) -> None:
    if values.ndim == 0 or values.shape[-1] < needed:
        raise ValueError(f"{what} maps {needed} dimensions, the array has shape {list(values.shape)}")


def _with_leading(values: np.ndarray, leading: np.ndarray) -> np.ndarray:
    result = values.astype(values.dtype if np.issubdtype(values.dtype, np.floating) else np.float64)
    result[..., : leading.shape[-1]] = leading
    return result
