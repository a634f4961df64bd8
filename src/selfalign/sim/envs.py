"""Gymnasium environments: `selfalign/Reach-v0`, `selfalign/Push-v0` and `selfalign/Lift-v0`.

    import gymnasium
    import selfalign.sim.envs  # registers them

    env = gymnasium.make("selfalign/Lift-v0", robot="ur5e_panda", action_space="joint_delta")
    envs = gymnasium.make_vec("selfalign/Reach-v0", num_envs=4)

Environments in processes of their own need `vectorization_mode="async", vector_kwargs={"context": "spawn",
"shared_memory": False}`: an OpenGL context does not survive a fork, and Gymnasium reads the instruction, which is text,
from shared memory once only.

Observations are the raw ones that `selfalign.Policy.act` takes. The reward is 1 while the task is done and 0 otherwise;
an episode ends when its time is over, never early, because a task counts as done only if it still is at the end.
"""

import string
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from jaxtyping import Float, UInt8

from selfalign.sim.bodies import ActionKind, ActionSpace, BodySpec, StateSpace
from selfalign.sim.control import WORKSPACE_HIGH, WORKSPACE_LOW, Controller
from selfalign.sim.engine import Simulation
from selfalign.sim.render import IMAGE_SIZE, CameraPose, WristMount
from selfalign.sim.robots import ROBOTS, RobotSpec
from selfalign.sim.tasks import EPISODE_STEPS, Kind, Scene, offered, sample_scene, sample_task

IMAGE, WRIST, STATE, TASK = "observation.images.scene", "observation.images.wrist", "observation.state", "task"
Observation = dict[str, Any]


class BodyEnv(gymnasium.Env[Observation, np.ndarray]):
    """One body at the table.

    `reset(options={"scene": Scene(...)})` begins a given scene instead of a drawn one. `info` has `success`,
    `progress` (metres, `Task.progress`) and, from `reset`, the `scene`.

    Args:
        body: the embodiment; observations and actions are in its numbers.
        kinds: task kinds, drawn uniformly at each reset.
        image_size: pixels of the observation.
        render_mode: None or "rgb_array".
        render_size: pixels of `render()`.

    Raises:
        ValueError: a task that is not offered for the robot.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 (gymnasium declares it so)

    def __init__(
        self,
        body: BodySpec,
        kinds: tuple[Kind, ...] = ("reach",),
        *,
        image_size: int = IMAGE_SIZE,
        render_mode: str | None = None,
        render_size: int = 256,
    ):
        for kind in kinds:
            if not offered(kind, body.arm, body.gripper):
                raise ValueError(f"the task {kind!r} is not offered for {body.robot.name}; see sim.tasks.NOT_OFFERED")
        self.body, self.kinds, self.image_size = body, kinds, image_size
        self.render_mode, self.render_size = render_mode, render_size
        self.sim = Simulation(body.robot, appearance=body.appearance, max_image_size=max(image_size, 256))
        self.sim.mount_wrist(body.wrist)
        self.controller = Controller(self.sim)
        self.scene: Scene | None = None
        self.observation_space = spaces.Dict(
            {
                IMAGE: spaces.Box(0, 255, (image_size, image_size, 3), np.uint8),
                WRIST: spaces.Box(0, 255, (image_size, image_size, 3), np.uint8),
                STATE: spaces.Box(-np.inf, np.inf, (body.state_dim,), np.float32),
                TASK: spaces.Text(64, charset=string.ascii_lowercase + " "),
            }
        )
        self.action_space = action_box(body, self.sim)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        rng = self.np_random
        scene: Scene = (options or {}).get("scene") or sample_scene(rng, sample_task(rng, self.kinds))
        self.sim.reset(np.array(scene.tip), scene.cubes, rng)
        self.controller.reset()
        self.scene, self._start = scene, self.sim.cube_position(scene.task.colour)
        return self._observation(), {**self._info(), "scene": scene}

    def step(self, action: Float[np.ndarray, " A"]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """One control step (0.05 s) of an action in the body's numbers.

        Raises:
            RuntimeError: before the first `reset`.
            ValueError: an action of another length, or not finite.
        """
        if self.scene is None:
            raise RuntimeError("call reset() before step()")
        self.body.action_space.execute(self.controller, action)
        info = self._info()
        return self._observation(), float(info["success"]), False, False, info

    def render(self) -> UInt8[np.ndarray, "size size 3"] | None:  # type: ignore[override]
        """The scene camera's picture, larger than the observation's."""
        if self.render_mode is None:
            return None
        return self.sim.render(self.body.camera, self.render_size)

    def close(self) -> None:
        self.sim.close()

    def _observation(self) -> Observation:
        sim = self.sim
        return {
            IMAGE: sim.render(self.body.camera, self.image_size),
            WRIST: sim.render("wrist", self.image_size),
            STATE: self.body.state_space.encode(sim.tip, sim.joints, sim.gripper_opening),
            TASK: self.scene.task.instruction if self.scene else "",
        }

    def _info(self) -> dict[str, Any]:
        task = self.scene.task  # type: ignore[union-attr]
        return {"success": task.success(self.sim, self._start), "progress": task.progress(self.sim, self._start)}


def action_box(body: BodySpec, sim: Simulation) -> spaces.Box:
    """The smallest box that holds every action that makes sense on the body: deltas in [-1, 1], or targets in the
    workspace or within the joint limits, through the body's frame."""
    space = body.action_space
    if space.is_delta:
        high = np.ones(space.dim(body.robot) - 1)
        low = -high
    else:
        low, high = sim.joint_limits if space.is_joint else (WORKSPACE_LOW, WORKSPACE_HIGH)
    low, high = space.bounds(low, high)
    low, high = np.append(low, -1.0), np.append(high, 1.0)
    return spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)


def make_body(
    robot: str | RobotSpec = "panda",
    camera: CameraPose | dict[str, Any] | None = None,
    action_space: ActionSpace | ActionKind = "ee_delta",
    state_space: StateSpace | None = None,
    appearance_seed: int | None = None,
    wrist: WristMount | dict[str, Any] | None = None,
) -> BodySpec:
    """A body from what `gymnasium.make` takes.

    Args:
        robot: a name of `selfalign.sim.robots.ROBOTS`, or an arm with a gripper.
        camera: where the scene camera is (`CameraPose`, or its fields); None: in front.
        action_space: a kind, or a kind with a frame.
        state_space: None: canonical, the tip for end-effector control and the joints for joint control.
        appearance_seed: None: the robot's own colours.
        wrist: where the camera on the hand is (`WristMount`, or its fields); None: on the side away from the robot.
    """
    if isinstance(robot, str):
        if robot not in ROBOTS:
            raise ValueError(f"unknown robot {robot!r}; known: {', '.join(ROBOTS)}")
        robot = ROBOTS[robot]
    pose = camera if isinstance(camera, CameraPose) else CameraPose(**(camera or {}))
    actions = action_space if isinstance(action_space, ActionSpace) else ActionSpace(action_space)
    states = state_space or StateSpace("joint" if actions.is_joint else "ee")
    mount = wrist if isinstance(wrist, WristMount) else WristMount(**(wrist or {}))
    return BodySpec(robot.arm, robot.gripper, pose, mount, appearance_seed, actions, states)


class TaskEnv(BodyEnv):
    """`BodyEnv` from plain arguments, which is what the registered environments are.

    Args:
        kind: the task kind.
        robot, camera, action_space, state_space, appearance_seed, wrist: see `make_body`.
        image_size, render_mode, render_size: see `BodyEnv`.
    """

    def __init__(
        self,
        kind: Kind,
        robot: str | RobotSpec = "panda",
        camera: CameraPose | dict[str, Any] | None = None,
        action_space: ActionSpace | ActionKind = "ee_delta",
        state_space: StateSpace | None = None,
        appearance_seed: int | None = None,
        wrist: WristMount | dict[str, Any] | None = None,
        image_size: int = IMAGE_SIZE,
        render_mode: str | None = None,
        render_size: int = 256,
    ):
        body = make_body(robot, camera, action_space, state_space, appearance_seed, wrist)
        super().__init__(body, (kind,), image_size=image_size, render_mode=render_mode, render_size=render_size)


def register() -> None:
    """Makes the environments known to Gymnasium; importing this module has done it."""
    for kind, steps in EPISODE_STEPS.items():
        name = f"selfalign/{kind.capitalize()}-v0"
        if name not in gymnasium.registry:
            gymnasium.register(
                name, "selfalign.sim.envs:TaskEnv", kwargs={"kind": kind}, max_episode_steps=steps, order_enforce=True
            )


register()
