"""`Embodiment`: what a robot calls its numbers and pictures, and how they become a model's.

A raw observation passes four stages on its way in, and actions pass them backwards on their way out:

    1 repack     the robot's keys -> observation.images.<camera>, observation.state, task   Embodiment.repack, unpack
    2 data       the robot's numbers -> the model's conventions (signs, deltas, grippers)   Embodiment.forward, inverse
    3 normalise  z-score or quantiles, with this robot's statistics                         data.normalize.NormStats
    4 model      resize with pad, tokenise, pad dimensions                                  Policy

The first two are the robot's and stand in its file; the other two are the same for all, and `Policy` applies all four.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from selfalign.embodiments.steps import Numbers, Step

IMAGES, STATE, ACTION, TASK = "observation.images.", "observation.state", "action", "task"


@dataclass(frozen=True)
class Part:
    """Consecutive dimensions of a state or an action that the robot gives under one key."""

    names: tuple[str, ...]
    """Of the dimensions, one each."""
    keys: tuple[str, ...]
    """Where they may be found; `a/b` is key b of the mapping under key a. The first one there counts, and is what
    `unpack` writes."""


@dataclass(frozen=True)
class Embodiment:
    """One robot: names, dimensions, and the steps between its numbers and the model's.

    LeRobot's names (`observation.images.<camera of the model>`, `observation.state`, `action`, `task`) are understood
    beside the robot's own, so a data set and the running robot pass the same code.
    """

    name: str
    cameras: Mapping[str, tuple[str, ...]]
    """Camera of the model -> keys under which the robot may give it. One that is not given is masked."""
    state: tuple[Part, ...]
    action: tuple[Part, ...]
    steps: tuple[Step, ...] = ()
    """Stage 2, in this order on the way in."""
    displaced: tuple[bool, ...] | None = None
    """Which numbers of an action are displacements or velocities as the robot takes them; those beyond are not. What
    `steps` make of targets need not be told. None: not known."""
    unused: tuple[str, ...] = ()
    """Keys of pictures that the model does not see; any other picture is an error."""
    tasks: tuple[str, ...] = ("prompt",)
    """Further keys of the instruction."""
    fps: float = 20.0
    """Control rate, Hz."""
    asset_id: str | None = None
    """Name of this robot's statistics in openpi's base checkpoints, which expect its conventions."""

    @property
    def state_names(self) -> tuple[str, ...]:
        return tuple(name for part in self.state for name in part.names)

    @property
    def action_names(self) -> tuple[str, ...]:
        return tuple(name for part in self.action for name in part.names)

    @property
    def chunked(self) -> bool:
        """Whether an action depends on the state at its chunk's start, so that statistics need the horizon."""
        return any(step.reads_state for step in self.steps)

    @property
    def displacements(self) -> tuple[bool, ...] | None:
        """Which numbers of the model's actions are displacements or velocities, which the speed of acting multiplies;
        None where nothing says it. A displacement from which a step subtracts the state all the same is none."""
        masks = [step.displaces for step in self.steps if any(step.displaces)]
        masks += [] if self.displaced is None else [self.displaced]
        dims = range(len(self.action_names))
        return tuple(sum(i < len(mask) and mask[i] for mask in masks) == 1 for i in dims) if masks else None

    # ---- stage 1 ---------------------------------------------------------------------------------------------------

    def repack(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """A robot's observation (or a batch, or a data set's sample with actions) in LeRobot's names.

        Pictures become uint8 [..., H, W, 3]: channel-first ones and floats in [0, 1] are understood. Keys that are not
        named here are dropped, unless they hold a picture.

        Raises:
            ValueError: a part, or every camera, is missing; a wrong shape; a picture that nobody asked for.
        """
        flat = _flatten(raw)
        images = {IMAGES + camera: _read_image(key, flat[key]) for camera, key in self._images(flat).items()}
        result: dict[str, Any] = {**images, STATE: self._read(flat, STATE, self.state)}
        task = next((flat[key] for key in (TASK, *self.tasks) if key in flat), None)
        if task is not None:
            result[TASK] = _read_task(task)
        # Some robots call state and action by the same keys; in an observation those are the state.
        own = {key for part in self.action for key in part.keys} - {key for part in self.state for key in part.keys}
        if not flat.keys().isdisjoint({ACTION, *own}):
            result[ACTION] = self._read(flat, ACTION, self.action)
        return result

    def unpack(self, actions: Float[np.ndarray, "*lead A"]) -> dict[str, np.ndarray]:
        """Actions under the robot's own keys; a part of one dimension keeps its axis."""
        self._check_dims(ACTION, actions, self.action)
        ends = np.cumsum([len(part.names) for part in self.action])[:-1]
        return {part.keys[0]: x for part, x in zip(self.action, np.split(actions, ends, axis=-1), strict=True)}

    def pick_cameras(self, names: Iterable[str]) -> dict[str, str]:
        """Camera of the model -> the data set's camera that shows it, both without `observation.images.`.

        Raises:
            ValueError: a camera that the robot does not have, or none that it has.
        """
        picture = np.empty((1, 1, 3))
        found = self._images({IMAGES + name: picture for name in names})
        return {camera: key.removeprefix(IMAGES) for camera, key in found.items()}

    def _images(self, flat: Mapping[str, Any]) -> dict[str, str]:
        """Camera of the model -> the key that holds it."""
        found = {}
        for camera, keys in self.cameras.items():
            key = next((key for key in (IMAGES + camera, *keys) if key in flat), None)
            if key is not None:
                found[camera] = key
        known = {*(key for keys in self.cameras.values() for key in keys), *self.unused, *found.values(), STATE, ACTION}
        known |= {TASK, *self.tasks, *(key for part in (*self.state, *self.action) for key in part.keys)}
        strange = [key for key, value in flat.items() if key not in known and _may_be_image(value)]
        if strange or not found:
            what = f"pictures that nobody reads: {', '.join(strange)}" if strange else "no picture"
            raise ValueError(
                f"the observation of {self.name} has {what}; its cameras are {self._told_cameras()}. Name another one "
                "in the embodiment's `cameras` or `unused`"
            )
        return found

    def _told_cameras(self) -> str:
        return "; ".join(f"{camera} ({', '.join(keys)})" for camera, keys in self.cameras.items())

    def _read(self, flat: Mapping[str, Any], whole: str, parts: tuple[Part, ...]) -> Float[np.ndarray, "*lead D"]:
        """The parts side by side, or the whole under LeRobot's name."""
        if whole in flat:
            values = _numbers(whole, flat[whole])
            self._check_dims(whole, values, parts)
            return values
        found = []
        for part in parts:
            key = next((key for key in part.keys if key in flat), None)
            if key is None:
                raise ValueError(
                    f"{self.name} needs {' or '.join(part.keys)} (or all of {whole}); there are "
                    f"{', '.join(sorted(flat)) or 'no keys'}"
                )
            found.append((key, _numbers(key, flat[key]), len(part.names)))
        # A gripper may come as a bare number: parts with an axis of their own tell how many axes lead.
        lead = next((x.shape[:-1] for _, x, dims in found if dims > 1), None)
        return np.concatenate([_shaped(key, x, dims, lead) for key, x, dims in found], axis=-1)

    def _check_dims(self, key: str, values: np.ndarray, parts: tuple[Part, ...]) -> None:
        dims = sum(len(part.names) for part in parts)
        if values.ndim == 0 or values.shape[-1] != dims:
            raise ValueError(f"{key} of {self.name} has {dims} dimensions, got shape {list(values.shape)}")

    # ---- stage 2 ---------------------------------------------------------------------------------------------------

    def forward(
        self, state: Float[np.ndarray, "*lead S"], actions: Float[np.ndarray, "*lead H A"] | None = None
    ) -> Numbers:
        """The robot's numbers in the model's conventions, still in units."""
        numbers = _floats(state, actions)
        for step in self.steps:
            numbers = step.forward(numbers)
        return numbers

    def inverse(
        self, state: Float[np.ndarray, "*lead S"], actions: Float[np.ndarray, "*lead H A"] | None = None
    ) -> Numbers:
        """Undoes `forward`; `state` is what `forward` gave."""
        numbers = _floats(state, actions)
        for step in reversed(self.steps):
            numbers = step.inverse(numbers)
        return numbers


def _flatten(raw: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by slashes."""
    result: dict[str, Any] = {}
    for key, value in raw.items():
        name = f"{prefix}{key}"
        result |= _flatten(value, f"{name}/") if isinstance(value, Mapping) else {name: value}
    return result


def _numbers(key: str, value: Any) -> np.ndarray:
    values = np.asarray(value)
    if values.dtype.kind not in "fiub":
        raise ValueError(f"{key} must be numbers, got {values.dtype}")
    return values if values.dtype.kind == "f" else values.astype(np.float64)


def _floats(state: Any, actions: Any) -> Numbers:
    """Whole numbers as floats: what steps make of them is none."""
    return Numbers(_numbers("the state", state), None if actions is None else _numbers("the actions", actions))


def _shaped(key: str, values: np.ndarray, dims: int, lead: tuple[int, ...] | None) -> np.ndarray:
    """[*lead, dims]; one dimension may come without its axis."""
    if dims == 1 and (values.shape == lead or (lead is None and values.shape[-1:] != (1,))):
        values = values[..., None]
    if values.shape[-1:] != (dims,) or (lead is not None and values.shape[:-1] != lead):
        wanted = [*(lead if lead is not None else ("...",)), dims]
        raise ValueError(f"{key} must have the shape {wanted}, got {list(values.shape)}")
    return values


def _may_be_image(value: Any) -> bool:
    """Numbers [..., H, W, 3] or [..., 3, H, W]; forces and rotation matrices are none."""
    shape = np.shape(value)
    return len(shape) >= 3 and 3 in (shape[-3], shape[-1]) and np.asarray(value).dtype.kind in "fiu"


def _read_image(key: str, value: Any) -> UInt8[np.ndarray, "*lead H W 3"]:
    """uint8, channels last; floats are truncated, as openpi does it."""
    image = np.asarray(value)
    if image.ndim < 3 or 3 not in (image.shape[-3], image.shape[-1]) or image.dtype.kind not in "fu":
        raise ValueError(f"{key} must be a picture [H, W, 3] or [3, H, W], got {image.dtype} {list(image.shape)}")
    if image.dtype.kind == "f":
        if not (image.min() >= 0 and image.max() <= 1):
            raise ValueError(f"{key} must be uint8, or float in [0, 1]; it goes from {image.min()} to {image.max()}")
        image = (255 * image).astype(np.uint8)
    if image.dtype != np.uint8:
        raise ValueError(f"{key} must be uint8, or float in [0, 1], got {image.dtype}")
    return np.moveaxis(image, -3, -1) if image.shape[-3] == 3 else image


def _read_task(task: Any) -> Any:
    """Text from bytes and from NumPy's zero-dimensional strings; lists of them stay lists."""
    if isinstance(task, np.ndarray):
        task = task.tolist()
    if isinstance(task, list | tuple):
        return [_read_task(item) for item in task]
    return task.decode("utf-8") if isinstance(task, bytes) else task
