"""Recording demonstrations and play, one body at a time or a whole source data set with worker processes.

A *rig* is a `BodySpec` with canonical spaces. Its recordings carry, beside image, state and action, what pretraining
needs to make other bodies of them:

| column | per frame |
|---|---|
| observation.tip [3] | measured tip, metres |
| action.tip_target [3] | commanded tip, metres |
| observation.joints [8] | measured joints in radians, padded to 7, then the gripper's opening |
| action.joints [8] | joint displacement / 0.1 rad, padded to 7, then the gripper's command |
| privileged.points [7, 4] | (u, v, visible, depth) of `Simulation.landmarks` for the camera `scene` |
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from selfalign.data.episodes import Episode
from selfalign.sim.bodies import BodySpec
from selfalign.sim.control import JOINT_STEP, TIP_STEP, Controller, Motion
from selfalign.sim.engine import Simulation
from selfalign.sim.experts import Noise, make_expert
from selfalign.sim.play_motion import PlayMotion
from selfalign.sim.render import IMAGE_SIZE, CameraPose, View
from selfalign.sim.tasks import Kind, Scene, sample_scene, sample_task

PLAY_STEPS = 50


@dataclass(frozen=True)
class Settling:
    """How a demonstration goes on after its task is done, so that it also shows how to stay."""

    steps: int
    disturbed: bool = False
    """Disturbances go on: coming back from near by is what precision is learned from. The steps then count from the
    first success on; otherwise they have to be successes without a break."""


SETTLING: dict[Kind, Settling] = {"reach": Settling(20, disturbed=True), "push": Settling(10), "lift": Settling(10)}
MAX_JOINTS = 7
BABBLE_SHARE = 0.1
"""Part of the play in which the joints wander too; only where the body, or a body made of it, commands joints."""
_MAX_FAILURES = 20
"""Failed demonstrations in a row, after which something is wrong with the robot or the task."""


@dataclass
class Recorder:
    """Records one body; holds (or borrows) the simulation of its robot.

    Args:
        body: which embodiment.
        sim: a simulation of the body's robot to use again; None: an own one.
        image_size: pixels.
        privileged: add the columns of source rigs.
        embodiment_index: written into the episodes.
    """

    body: BodySpec
    sim: Simulation | None = None
    image_size: int = IMAGE_SIZE
    privileged: bool = False
    embodiment_index: int = 0
    _columns: dict[str, list] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.sim is None:
            self.sim = Simulation(self.body.robot)
        if self.sim.robot != self.body.robot:
            raise ValueError(f"the simulation is of {self.sim.robot.name}, the body has {self.body.robot.name}")
        self._simulation = self.sim
        self._controller = Controller(self.sim)

    def play(self, rng: np.random.Generator, length: int = PLAY_STEPS, extent: float = 1.0) -> Episode:
        """One play trajectory of `length` frames; object poses are drawn and never looked at.

        `extent` is the share of the workspace that the motion covers, about its centre.
        """
        # In front of objects of a scene like any other, but the motion does not know where they are.
        self._begin(sample_scene(rng, sample_task(rng)), rng)
        may_babble = self.privileged or self.body.action_space.is_joint
        motion = PlayMotion(rng, bool(may_babble and rng.random() < BABBLE_SHARE), extent)
        for _ in range(length):
            self._observe()
            self._acted(motion.step(self._controller))
        return self._episode("", is_play=True)

    def demonstrate(
        self, rng: np.random.Generator, kinds: tuple[Kind, ...] = ("reach",), noise: float = 1.0
    ) -> Episode:
        """One successful demonstration; unsuccessful ones are drawn again.

        Args:
            rng: source of randomness.
            kinds: task kinds, drawn uniformly.
            noise: scale of the disturbances of what is executed (0: none); the recorded action is the expert's.

        Raises:
            RuntimeError: 20 failures in a row.
        """
        for _ in range(_MAX_FAILURES):
            episode = self._try_demonstration(rng, sample_scene(rng, sample_task(rng, kinds)), noise)
            if episode is not None:
                return episode
        raise RuntimeError(f"{self.body.name}: {_MAX_FAILURES} demonstrations of {', '.join(kinds)} failed in a row")

    def _try_demonstration(self, rng: np.random.Generator, scene: Scene, noise: float) -> Episode | None:
        task, sim, controller = scene.task, self._simulation, self._controller
        settling = SETTLING[task.kind]
        self._begin(scene, rng)
        expert, start = make_expert(task, sim), sim.cube_position(task.colour)
        disturb: Callable = Noise(rng, scale=0.6 * noise) if noise > 0 else lambda action: action
        done = 0
        for _ in range(task.steps):
            self._observe()
            label = expert(sim)
            action = disturb(label) if settling.disturbed or not done else label
            intended = None if action is label else self._intended(label)
            executed = controller.move_tip(action[:3], action[3])
            self._acted(intended or executed)
            done = done + 1 if task.success(sim, start) or (done and settling.disturbed) else 0
            if done == settling.steps:
                break
        return self._episode(task.instruction, is_play=False) if done else None

    def _intended(self, action: np.ndarray) -> Motion:
        """What an action would command, without doing it."""
        controller, target = self._controller, self._controller.limit(action[:3])
        joints, _ = self._simulation.kinematics.solve(target, controller.joint_target)
        return Motion(
            delta=(target - controller.tip_target) / TIP_STEP,
            tip_target=target,
            joint_delta=(joints - controller.joint_target) / JOINT_STEP,
            joint_target=joints,
            gripper=float(action[3]),
        )

    def _begin(self, scene: Scene, rng: np.random.Generator) -> None:
        self._simulation.set_appearance(self.body.appearance)
        self._simulation.mount_wrist(self.body.wrist)
        self._simulation.reset(np.array(scene.tip), scene.cubes, rng)
        self._controller.reset()
        self._columns = {}

    def _add(self, **values) -> None:
        for name, value in values.items():
            self._columns.setdefault(name, []).append(value)

    def _observe(self) -> None:
        sim = self._simulation
        tip, joints, opening = sim.tip, sim.joints, sim.gripper_opening
        for name, camera in self.body.cameras.items():
            self._add(**{name: sim.render(camera, self.image_size)})
        self._add(state=self.body.state_space.encode(tip, joints, opening))
        if self.privileged:
            self._add(tip=tip, joints=_padded(joints, opening), points=sim.landmarks)

    def _acted(self, motion: Motion) -> None:
        self._add(action=self.body.action_space.encode(motion))
        if self.privileged:
            self._add(tip_target=motion.tip_target, joint_action=_padded(motion.joint_delta, motion.gripper))

    def _episode(self, task: str, is_play: bool) -> Episode:
        names = {
            "observation.tip": "tip",
            "action.tip_target": "tip_target",
            "observation.joints": "joints",
            "action.joints": "joint_action",
            "privileged.points": "points",
        }
        arrays = {name: np.stack(values) for name, values in self._columns.items()}
        if self.privileged:
            arrays["points"] = pixel_labels(self.body.camera, arrays["points"])
        extra = {column: arrays[name].astype(np.float32) for column, name in names.items() if name in arrays}
        return Episode(
            images={name: arrays[name] for name in self.body.cameras},
            state=arrays["state"],
            action=arrays["action"],
            task=task,
            fps=self.body.control_hz,
            embodiment_index=self.embodiment_index,
            is_play=is_play,
            extra=extra,
        )


def _padded(joints: np.ndarray, gripper: float) -> np.ndarray:
    padded = np.zeros(MAX_JOINTS + 1)
    padded[: len(joints)], padded[-1] = joints, gripper
    return padded


def pixel_labels(camera: CameraPose | View, points: Float[np.ndarray, "*T K 3"]) -> Float[np.ndarray, "*T K 4"]:
    """Where a camera sees points: (u, v, 1, depth) with u, v in [0, 1] and the depth in metres along the viewing
    direction; zeros outside of the picture and for NaN.

    Occlusion is not considered.
    """
    pixels = camera.project(points)
    visible = ((pixels >= 0.0) & (pixels <= 1.0)).all(axis=-1, keepdims=True)  # False for NaN
    depth = ((points - camera.position) @ camera.axes[2])[..., None]
    return np.where(visible, np.concatenate([pixels, visible, depth], axis=-1), 0.0)


def play_trajectories(
    body: BodySpec,
    n: int,
    length: int = PLAY_STEPS,
    seed: int = 0,
    *,
    image_size: int = IMAGE_SIZE,
    sim: Simulation | None = None,
    extent: float = 1.0,
) -> Iterator[Episode]:
    """Play of a body in its own numbers, each trajectory as it is asked for: image, state and action, nothing else.

    Args:
        body: which embodiment.
        n: trajectories, at least 1.
        length: frames of each, at least 2; play of 50 frames has 50 - H transitions of H steps.
        seed: other seeds give other motion.
        image_size: pixels.
        sim: a simulation of the body's robot to use again.
        extent: share of the workspace that the motion covers.

    Raises:
        ValueError: too few trajectories or frames.
    """
    if n < 1 or length < 2:
        raise ValueError(f"play needs at least one trajectory of two frames, got {n} of {length}")
    recorder = Recorder(body, sim, image_size)
    for i in range(n):
        yield recorder.play(np.random.default_rng([seed, 2, i]), length, extent)


def record_play(body: BodySpec, n: int, length: int = PLAY_STEPS, seed: int = 0, **options: Any) -> list[Episode]:
    """All of `play_trajectories` at once."""
    return list(play_trajectories(body, n, length, seed, **options))


def record_demonstrations(
    body: BodySpec,
    n: int,
    seed: int = 0,
    *,
    kinds: tuple[Kind, ...] = ("reach",),
    noise: float = 1.0,
    image_size: int = IMAGE_SIZE,
    sim: Simulation | None = None,
) -> list[Episode]:
    """Successful demonstrations of a body in its own numbers; see `record_play` and `Recorder.demonstrate`."""
    recorder = Recorder(body, sim, image_size)
    return [recorder.demonstrate(np.random.default_rng([seed, 3, i]), kinds, noise) for i in range(n)]


def rig_episodes(
    recorder: Recorder, play: int, demonstrations: int, kinds: tuple[Kind, ...], seed: int
) -> Iterator[Episode]:
    """Everything that a source data set holds of one rig."""
    index = recorder.embodiment_index
    for i in range(play):
        yield recorder.play(np.random.default_rng([seed, 4, index, i]))
    for i in range(demonstrations):
        yield recorder.demonstrate(np.random.default_rng([seed, 5, index, i]), kinds)
