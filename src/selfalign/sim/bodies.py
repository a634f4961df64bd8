"""`BodySpec`: an embodiment as a value. Robot, camera, looks, action space, state space and rate, drawn from a seed."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float

from selfalign.data.perturb import JointFrame, LinearFrame, frame_from_dict
from selfalign.sim import regions
from selfalign.sim.appearance import Appearance
from selfalign.sim.control import Controller, Motion
from selfalign.sim.regions import Region, Scenario
from selfalign.sim.render import CameraPose, WristMount
from selfalign.sim.robots import RobotSpec

ActionKind = Literal["ee_delta", "ee_absolute", "joint_delta", "joint_absolute"]
StateKind = Literal["ee", "joint"]
ACTION_KINDS: tuple[ActionKind, ...] = get_args(ActionKind)
_CANONICAL = LinearFrame()

_VIEW_LOW, _VIEW_HIGH = np.array([-0.15, -0.15, 0.0]), np.array([0.15, 0.15, 0.20])
"""The box that a camera keeps in view: every cube, and the tip where it works."""
_LOOKAT = np.array([0.0, 0.0, 0.07])


def _plain_frame(frame: LinearFrame | JointFrame, joint: bool, what: str) -> None:
    if joint and isinstance(frame, LinearFrame) and frame != _CANONICAL:
        raise ValueError(f"{what} is in joint space; its frame must be a JointFrame, got {frame}")
    if not joint and isinstance(frame, JointFrame):
        raise ValueError(f"{what} is in Cartesian space; its frame must be a LinearFrame, got {frame}")


@dataclass(frozen=True)
class ActionSpace:
    """What the numbers of an action mean on a body: a kind of command, in a frame of its own.

    | kind | canonical numbers |
    |---|---|
    | ee_delta | tip displacement / 0.03 m, 3 numbers in [-1, 1] |
    | ee_absolute | tip target in metres from the workspace centre, 3 numbers |
    | joint_delta | joint displacement / 0.1 rad, n numbers in [-1, 1] |
    | joint_absolute | joint target in radians, n numbers |

    The body's action is `frame.apply(canonical)`, and the last number is the gripper's: -1 open, +1 close.

    Raises:
        ValueError: an unknown kind, a frame of the other sort, or a delta with an offset.
    """

    kind: ActionKind = "ee_delta"
    frame: LinearFrame | JointFrame = LinearFrame()

    def __post_init__(self) -> None:
        if self.kind not in ACTION_KINDS:
            raise ValueError(f"unknown action kind {self.kind!r}; known: {', '.join(ACTION_KINDS)}")
        _plain_frame(self.frame, self.is_joint, f"action kind {self.kind}")
        if self.is_delta and any(self.frame.offset):
            raise ValueError(f"the frame of {self.kind} must have no offset, got {self.frame.offset}")

    @property
    def is_joint(self) -> bool:
        return self.kind.startswith("joint")

    @property
    def is_delta(self) -> bool:
        return self.kind.endswith("delta")

    def dim(self, robot: RobotSpec) -> int:
        """Length of an action."""
        return (robot.num_joints if self.is_joint else 3) + 1

    def encode(self, motion: Motion) -> Float[np.ndarray, " A"]:
        """A motion in the body's numbers, float32."""
        values = {
            "ee_delta": motion.delta,
            "ee_absolute": motion.tip_target,
            "joint_delta": motion.joint_delta,
            "joint_absolute": motion.joint_target,
        }[self.kind]
        return self.to_body(np.append(values, motion.gripper)).astype(np.float32)

    def execute(self, controller: Controller, action: Float[np.ndarray, " A"]) -> Motion:
        """One control step of an action in the body's numbers.

        Raises:
            ValueError: a wrong shape, or a value that is not finite.
        """
        action = np.asarray(action, dtype=np.float64)
        wanted = self.dim(controller.sim.robot)
        if action.shape != (wanted,) or not np.isfinite(action).all():
            raise ValueError(f"{self.kind} takes {wanted} finite numbers, got shape {action.shape}: {action}")
        canonical = self.to_canonical(action)
        move = {
            "ee_delta": controller.move_tip,
            "ee_absolute": controller.move_tip_to,
            "joint_delta": controller.move_joints,
            "joint_absolute": controller.move_joints_to,
        }[self.kind]
        return move(canonical[:-1], float(canonical[-1]))

    def to_body(self, values: Float[np.ndarray, "*lead D"]) -> Float[np.ndarray, "*lead D"]:
        """Canonical numbers (with or without the gripper's) in the body's frame."""
        return values if self.frame == _CANONICAL else self.frame.apply(values)

    def to_canonical(self, values: Float[np.ndarray, "*lead D"]) -> Float[np.ndarray, "*lead D"]:
        """Undoes `to_body`."""
        return values if self.frame == _CANONICAL else self.frame.invert(values)

    def bounds(
        self, low: Float[np.ndarray, " n"], high: Float[np.ndarray, " n"]
    ) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Corners of the smallest box in the body's frame that holds a box of canonical numbers."""
        centre, half = (low + high) / 2, (high - low) / 2
        # Frames are affine: the image of a box is bounded by its centre's image and its half edges' images.
        middle = self.to_body(centre)
        reach = np.abs([self.to_body(centre + edge) - middle for edge in np.diag(half)]).sum(axis=0)
        return middle - reach, middle + reach

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "frame": self.frame.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ActionSpace":
        return cls(data["kind"], frame_from_dict(data["frame"]))


@dataclass(frozen=True)
class StateSpace:
    """What the numbers of a state mean on a body: `ee` is the tip in metres, `joint` the joints in radians, each in a
    frame of its own; the last number is the gripper's opening, 1 open to 0 closed.

    Raises:
        ValueError: an unknown kind, or a frame of the other sort.
    """

    kind: StateKind = "ee"
    frame: LinearFrame | JointFrame = LinearFrame()

    def __post_init__(self) -> None:
        if self.kind not in get_args(StateKind):
            raise ValueError(f"unknown state kind {self.kind!r}; known: {', '.join(get_args(StateKind))}")
        _plain_frame(self.frame, self.kind == "joint", f"state kind {self.kind}")

    def dim(self, robot: RobotSpec) -> int:
        """Length of a state."""
        return (robot.num_joints if self.kind == "joint" else 3) + 1

    def encode(
        self, tip: Float[np.ndarray, "3"], joints: Float[np.ndarray, " n"], opening: float
    ) -> Float[np.ndarray, " S"]:
        """A measurement in the body's numbers, float32."""
        values = np.append(joints if self.kind == "joint" else tip, opening)
        return (values if self.frame == _CANONICAL else self.frame.apply(values)).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "frame": self.frame.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "StateSpace":
        return cls(data["kind"], frame_from_dict(data["frame"]))


@dataclass(frozen=True)
class BodySpec:
    """An embodiment. With the default spaces it is a source *rig*: canonical numbers, from which pretraining makes many
    bodies by changing frames."""

    arm: str = "panda"
    gripper: str = "panda"
    camera: CameraPose = field(default_factory=CameraPose)
    """The camera `scene`."""
    wrist: WristMount = WristMount()
    """Where the camera `wrist` is on the hand."""
    appearance_seed: int | None = None
    """None: the robot's own colours."""
    action_space: ActionSpace = ActionSpace()
    state_space: StateSpace = StateSpace()
    control_hz: float = 20.0
    disguised: bool = False
    """Some parts look like boxes, capsules or cylinders: for sources, so that no single shape means "arm"."""

    def __post_init__(self) -> None:
        joints = self.robot.num_joints
        for space in (self.action_space, self.state_space):
            if isinstance(space.frame, JointFrame) and space.frame.joints != joints:
                raise ValueError(f"{self.arm} has {joints} joints, the frame is for {space.frame.joints}")
        if self.control_hz != 20.0:
            raise ValueError(f"the simulator runs at 20 Hz, the body asks for {self.control_hz} Hz")

    @property
    def robot(self) -> RobotSpec:
        """Arm and gripper."""
        return RobotSpec(self.arm, self.gripper)

    @property
    def cameras(self) -> dict[str, CameraPose | str]:
        """What each of its cameras is to `Simulation.render`."""
        return {"scene": self.camera, "wrist": "wrist"}

    @property
    def appearance(self) -> Appearance:
        """Colours, lights and shapes."""
        return Appearance(self.appearance_seed, shapes=self.disguised)

    @property
    def name(self) -> str:
        """Readable, safe as a file name, and distinct for distinct bodies; the same on every machine."""
        digest = hashlib.sha256(json.dumps(_rounded(self.to_dict()), sort_keys=True).encode()).hexdigest()[:6]
        camera = f"az{self.camera.azimuth:+.0f}-el{self.camera.elevation:.0f}"
        return f"{self.robot.name}-{self.action_space.kind}-{camera}-{digest}"

    @property
    def action_dim(self) -> int:
        return self.action_space.dim(self.robot)

    @property
    def state_dim(self) -> int:
        return self.state_space.dim(self.robot)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "arm": self.arm,
            "gripper": self.gripper,
            "camera": self.camera.to_dict(),
            "wrist": asdict(self.wrist),
            "appearance_seed": self.appearance_seed,
            "action_space": self.action_space.to_dict(),
            "state_space": self.state_space.to_dict(),
            "control_hz": self.control_hz,
            "disguised": self.disguised,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "BodySpec":
        """The inverse of `to_dict`; unknown keys (such as `name`) are ignored.

        Raises:
            ValueError: a missing key, or a value that no body has.
        """
        try:
            return cls(
                data["arm"],
                data["gripper"],
                CameraPose.from_dict(data["camera"]),
                WristMount(**data["wrist"]),
                data["appearance_seed"],
                ActionSpace.from_dict(data["action_space"]),
                StateSpace.from_dict(data["state_space"]),
                data["control_hz"],
                data["disguised"],
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a body specification: {type(error).__name__} {error}") from error


def _rounded(value: Any) -> Any:
    """JSON values without the last bits of their numbers, in which machines differ."""
    if isinstance(value, Mapping):
        return {name: _rounded(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    return round(value, 9) + 0.0 if isinstance(value, float) else value  # + 0.0: there is no minus zero


def sample_camera(rng: np.random.Generator, region: Region) -> CameraPose:
    """A camera of the region that looks at the workspace from as near as keeps it in view."""
    azimuth = regions.sample_bearing(rng, region)
    elevation = float(rng.uniform(*regions.ELEVATION[region]))
    lookat = _LOOKAT + rng.uniform(-regions.LOOKAT_JITTER, regions.LOOKAT_JITTER, size=3)
    camera = CameraPose(azimuth, elevation, 1.0, tuple(lookat.tolist()), float(rng.uniform(*regions.FOVY)))
    distance = tightest_distance(camera) * rng.uniform(*regions.DISTANCE_SLACK)
    return CameraPose(azimuth, elevation, float(distance), camera.lookat, camera.fovy)


def sample_wrist(rng: np.random.Generator, region: Region) -> WristMount:
    """A mount of the region for the camera on the hand."""
    spans = regions.WRIST_ELEVATION, regions.WRIST_DISTANCE, regions.WRIST_FOVY
    return WristMount(regions.sample_wrist_bearing(rng, region), *(float(rng.uniform(*span)) for span in spans))


def tightest_distance(camera: CameraPose) -> float:
    """The least distance at which all corners of the view box are in the picture."""
    corners = np.array(np.meshgrid(*zip(_VIEW_LOW, _VIEW_HIGH, strict=True))).reshape(3, -1).T
    right, down, depth = camera.axes @ (corners - np.asarray(camera.lookat)).T
    return float((np.maximum(abs(right), abs(down)) / np.tan(np.radians(camera.fovy) / 2) - depth).max())


def sample_rigs(
    n: int,
    seed: int,
    robots: tuple[tuple[str, str], ...] = tuple((arm, "panda") for arm in regions.SOURCE_ARMS),
    cameras: int | None = None,
) -> list[BodySpec]:
    """Source rigs with canonical spaces; rig i has robot i modulo the number of robots, every other one is disguised.

    Args:
        n: how many.
        seed: other seeds give other rigs.
        robots: arms and grippers.
        cameras: how many camera poses (and mounts) the rigs share, by turns; None: each has its own.

    Raises:
        ValueError: a held-out arm among the robots, no robot or no camera.
    """
    if cameras is not None and cameras < 1:
        raise ValueError(f"rigs need at least one camera pose, got cameras={cameras}")
    if not robots or any(arm not in regions.SOURCE_ARMS for arm, _ in robots):
        found = ", ".join(arm for arm, _ in robots) or "none"
        raise ValueError(f"sources have one or more of the arms {', '.join(regions.SOURCE_ARMS)}; got {found}")
    rng = np.random.default_rng([seed, 0])
    rigs = [
        BodySpec(
            arm,
            gripper,
            sample_camera(rng, "source"),
            sample_wrist(rng, "source"),
            regions.sample_appearance(rng, "source"),
            disguised=i % 2 == 1,
        )
        for i, (arm, gripper) in enumerate(robots[i % len(robots)] for i in range(n))
    ]
    shared = [rigs[i % (cameras or n)] for i in range(n)]
    return [replace(rig, camera=other.camera, wrist=other.wrist) for rig, other in zip(rigs, shared, strict=True)]


def sample_bodies(
    n: int,
    seed: int,
    region: Region = "heldout",
    scenario: Scenario = "all",
    kinds: tuple[ActionKind, ...] | None = None,
) -> list[BodySpec]:
    """Bodies of a scenario, `n` of them from a seed.

    Held out is only what the scenario is about: `camera` both cameras, `action` the action frame (and the state frame),
    `joint` the joint order, `robot` the arm, `all` cameras, frames and arm at once; the rest is drawn from the source
    region. Looks are unseen in all of them. With `region="source"` the same kinds of body, seen: what the oracle is
    measured on.

    Args:
        n: how many.
        seed: any; other seeds give other bodies.
        region: "heldout" or "source".
        scenario: one of `regions.SCENARIOS`.
        kinds: action kinds, drawn uniformly; default ee_delta, and joint_delta in `joint`.

    Raises:
        ValueError: an unknown region or scenario.
    """
    if region not in regions.REGIONS or scenario not in regions.SCENARIOS:
        raise ValueError(
            f"unknown region or scenario {region!r}, {scenario!r}; "
            f"known: {', '.join(regions.REGIONS)} and {', '.join(regions.SCENARIOS)}"
        )
    kinds = kinds or (("joint_delta",) if scenario == "joint" else ("ee_delta",))
    rng = np.random.default_rng([seed, 1, regions.SCENARIOS.index(scenario), regions.REGIONS.index(region)])
    return [_sample_body(rng, region, scenario, kinds) for _ in range(n)]


def _sample_body(
    rng: np.random.Generator, region: Region, scenario: Scenario, kinds: tuple[ActionKind, ...]
) -> BodySpec:
    def of(*scenarios: Scenario) -> Region:
        return region if scenario in scenarios else "source"

    robot = RobotSpec(_sample_arm(rng, scenario, region), "panda")
    camera, wrist = sample_camera(rng, of("camera", "all")), sample_wrist(rng, of("camera", "all"))
    kind = kinds[rng.integers(len(kinds))]
    action_space, state_space = sample_spaces(rng, of("action", "joint", "all"), kind, robot.num_joints)
    looks = regions.sample_appearance(rng, region)
    return BodySpec(robot.arm, robot.gripper, camera, wrist, looks, action_space, state_space)


CHANGED: dict[Scenario, tuple[str, ...]] = {
    "camera": ("camera", "wrist"),
    "action": ("action_space", "state_space"),
    "joint": ("action_space", "state_space"),
    "robot": ("arm", "gripper"),
    "all": ("camera", "wrist", "action_space", "state_space", "arm", "gripper"),
}
"""Of a body, what a scenario is about."""


def before_change(body: BodySpec, scenario: Scenario, seed: int) -> BodySpec:
    """A held-out body as it may have been before what the scenario is about changed: that is drawn from the source
    region, the rest is as it is.

    Args:
        body: with as many joints as the robots of the source region that the scenario draws, if its numbers are joints.
        seed: of the draw.
    """
    # The stream of [seed, 2, 0], of the body's first play: unlike things are drawn of it, and results depend on it.
    other = _sample_body(np.random.default_rng([seed, 2]), "source", scenario, (body.action_space.kind,))
    return replace(body, **{name: getattr(other, name) for name in CHANGED[scenario]})


def _sample_arm(rng: np.random.Generator, scenario: Scenario, region: Region) -> str:
    if scenario not in ("robot", "all"):
        return "panda"
    arms = (regions.HELDOUT_ARM,) if region == "heldout" else regions.SOURCE_ARMS
    return arms[rng.integers(len(arms))]


def sample_spaces(
    rng: np.random.Generator, region: Region, kind: ActionKind, joints: int, width: float = 1.0
) -> tuple[ActionSpace, StateSpace]:
    """An action and a state space of the region.

    End-effector bodies have independent frames for actions and states, and an origin of states of their own. A joint
    body reports its joints in the order, signs and scales in which it takes commands. A `width` below 1 keeps
    end-effector frames nearer to the canonical ones.
    """
    if kind.startswith("joint"):
        frame = regions.sample_joint_frame(rng, region, joints)
        return ActionSpace(kind, frame), StateSpace("joint", frame)
    offset = 0.0 if kind == "ee_delta" else regions.STATE_OFFSET
    action = regions.sample_frame(rng, region, offset, width)
    state = regions.sample_frame(rng, region, regions.STATE_OFFSET, width)
    return ActionSpace(kind, action), StateSpace("ee", state)
