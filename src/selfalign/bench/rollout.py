"""Closed-loop evaluation: many episodes of one body in lockstep, so that the policy answers all of them in one batch.

An episode's scene and the policy's noise depend on the seed and the episode's index only. Before and after an
alignment, and with any other context, the same scenes are met with the same noise: what differs is the context.
"""

import time
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, UInt8

from selfalign.bench.stats import Interval, wilson
from selfalign.model.context import EmbodimentContext
from selfalign.model.policy import VLA
from selfalign.sim.bodies import BodySpec
from selfalign.sim.control import Controller
from selfalign.sim.engine import Simulation
from selfalign.sim.render import Renderer
from selfalign.sim.robots import RobotSpec
from selfalign.sim.tasks import Kind, Task, sample_scene, sample_task


class Actor(Protocol):
    """What a rollout needs of a policy (`selfalign.Policy` is one)."""

    @property
    def model(self) -> VLA:
        """Says which cameras it sees, how large, and how long its chunks are."""
        ...

    def act(
        self, observation: Any, context: EmbodimentContext | None = None, *, noise: Any = None, num_steps: int = 10
    ) -> np.ndarray:
        """Actions `[B, H, A]` in the body's units for raw observations with a leading batch axis."""
        ...


@dataclass(frozen=True)
class RolloutConfig:
    """How episodes are run."""

    tasks: tuple[Kind, ...] = ("reach",)
    """Kinds of task, drawn uniformly."""
    episodes: int = 20
    seed: int = 0
    execute: int = 4
    """Steps of each action chunk that are carried out before the policy is asked again."""
    num_steps: int = 10
    """Euler steps of the flow per chunk."""
    video_episodes: int = 0
    """How many episodes are filmed, the first ones."""
    video_size: int = 160
    """Pixels of the film; the policy sees its own size."""
    video_every: int = 2
    """Control steps between frames."""

    def __post_init__(self) -> None:
        if self.episodes < 1 or self.execute < 1 or not self.tasks:
            raise ValueError(
                f"a rollout needs at least one episode, one executed step and one task; got {self.episodes} episodes, "
                f"{self.execute} steps, tasks {self.tasks}"
            )


@dataclass(frozen=True, eq=False)
class Outcome:
    """How one episode ended."""

    instruction: str
    success: bool
    progress: float
    """Metres: `Task.progress` at the end (for reach, minus the distance to the target point)."""
    frames: tuple[UInt8[np.ndarray, "size size 3"], ...] = ()
    """The film, where there is one."""


@dataclass(frozen=True)
class RolloutResult:
    """Episodes of one body under one context."""

    outcomes: tuple[Outcome, ...]
    seconds: float
    """Wall time of all episodes together."""

    @property
    def successes(self) -> int:
        return sum(outcome.success for outcome in self.outcomes)

    @property
    def success(self) -> Interval:
        """Share of successful episodes with Wilson's interval."""
        return wilson(self.successes, len(self.outcomes))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; films are left out."""
        return {
            "successes": self.successes,
            "episodes": len(self.outcomes),
            **{key: None if number is None else round(number, 4) for key, number in self.success.to_dict().items()},
            "mean_progress": round(float(np.mean([outcome.progress for outcome in self.outcomes])), 4),
            "seconds": round(self.seconds, 2),
        }


class Arena:
    """Simulations of one robot side by side, with one renderer for all of them.

    A renderer holds the robot's meshes (about 80 MB and half a second to make), and pictures depend on the state that
    it is handed, so one is enough. Worth keeping between rollouts of the same robot.
    """

    def __init__(self, robot: RobotSpec, max_image_size: int = 256):
        self.robot = robot
        self._max_image_size = max_image_size
        self._sims: list[Simulation] = []
        self._renderer: Renderer | None = None

    def simulations(self, count: int) -> list[Simulation]:
        """The first `count` simulations, made where needed."""
        while len(self._sims) < count:
            self._sims.append(Simulation(self.robot))
        return self._sims[:count]

    def dress(self, body: BodySpec) -> None:
        """Gives every picture the looks of `body`."""
        self.simulations(1)[0].set_appearance(body.appearance)
        self.simulations(1)[0].mount_wrist(body.wrist)

    def picture(self, sim: Simulation, camera: Any, size: int) -> UInt8[np.ndarray, "size size 3"]:
        """What a camera (a pose, or a name) sees of one of the simulations."""
        if self._renderer is None:
            self._renderer = Renderer(self.simulations(1)[0].model, self._max_image_size)
        return self._renderer.render(sim.data, camera, size)

    def close(self) -> None:
        """Frees the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def __enter__(self) -> "Arena":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


class _Episode:
    """One episode in the middle of its life."""

    def __init__(self, body: BodySpec, sim: Simulation, config: RolloutConfig, index: int):
        rng = np.random.default_rng([config.seed, 6, index])
        self.body, self.sim = body, sim
        self.task: Task = sample_task(rng, config.tasks)
        scene = sample_scene(rng, self.task)
        sim.reset(np.array(scene.tip), scene.cubes, rng)
        self.controller = Controller(sim)
        self.start = sim.cube_position(self.task.colour)
        self.noise = torch.Generator().manual_seed(int(rng.integers(2**62)))
        self.steps = 0
        self.frames: list[np.ndarray] = []

    @property
    def running(self) -> bool:
        return self.steps < self.task.steps

    def state(self) -> Float[np.ndarray, " S"]:
        return self.body.state_space.encode(self.sim.tip, self.sim.joints, self.sim.gripper_opening)

    def step(self, action: Float[np.ndarray, " A"]) -> None:
        self.body.action_space.execute(self.controller, action)
        self.steps += 1

    def outcome(self) -> Outcome:
        success = self.task.success(self.sim, self.start)
        return Outcome(self.task.instruction, success, self.task.progress(self.sim, self.start), tuple(self.frames))


def rollout(
    policy: Actor,
    body: BodySpec,
    context: EmbodimentContext | None = None,
    config: RolloutConfig = RolloutConfig(),
    *,
    arena: Arena | None = None,
) -> RolloutResult:
    """Runs episodes of a body under a context and reports how they ended.

    Args:
        policy: `selfalign.Policy`.
        body: the embodiment; its action and state spaces are the units that the policy is given and gives.
        context: whose normalisation statistics and fast weights are used; None: the checkpoint's own.
        config: how many episodes of what.
        arena: simulations of the body's robot to use again; None: own ones.

    Raises:
        ValueError: the arena is of another robot, or the policy's actions have another length than the body's.
    """
    if arena is None:
        with Arena(body.robot) as own:
            return rollout(policy, body, context, config, arena=own)
    if arena.robot != body.robot:
        raise ValueError(f"the arena is of {arena.robot.name}, the body has {body.robot.name}")
    began = time.perf_counter()
    arena.dress(body)
    sims = arena.simulations(config.episodes)
    episodes = [_Episode(body, sim, config, index) for index, sim in enumerate(sims)]
    while running := [episode for episode in episodes if episode.running]:
        chunks = _ask(policy, body, context, running, arena, config.num_steps)
        for offset in range(min(config.execute, chunks.shape[1])):
            for episode, chunk in zip(running, chunks, strict=True):
                if episode.running:
                    _film(episode, config, arena, film=episodes.index(episode) < config.video_episodes)
                    episode.step(chunk[offset])
    for episode in episodes[: config.video_episodes]:
        episode.frames.append(arena.picture(episode.sim, body.camera, config.video_size))
    return RolloutResult(tuple(episode.outcome() for episode in episodes), time.perf_counter() - began)


def _ask(
    policy: Actor,
    body: BodySpec,
    context: EmbodimentContext | None,
    episodes: list[_Episode],
    arena: Arena,
    num_steps: int,
) -> Float[np.ndarray, "B H A"]:
    """Action chunks of the episodes that are running, in one batch."""
    model = policy.model.config
    observation: dict[str, Any] = {
        f"observation.images.{camera}": np.stack(
            [arena.picture(e.sim, body.cameras[camera], model.image_size) for e in episodes]
        )
        for camera in model.cameras
    }
    observation["observation.state"] = np.stack([episode.state() for episode in episodes])
    observation["task"] = [episode.task.instruction for episode in episodes]
    shape = (model.action_horizon, model.action_dim)
    noise = torch.stack([torch.randn(shape, generator=episode.noise) for episode in episodes])
    chunks = np.asarray(policy.act(observation, context, noise=noise, num_steps=num_steps))
    if chunks.shape[-1] != body.action_dim:
        raise ValueError(
            f"the policy gives {chunks.shape[-1]} action dimensions, {body.name} takes {body.action_dim}: "
            "the context's statistics are of another body"
        )
    return chunks


def _film(episode: _Episode, config: RolloutConfig, arena: Arena, film: bool) -> None:
    if film and episode.steps % config.video_every == 0:
        episode.frames.append(arena.picture(episode.sim, episode.body.camera, config.video_size))
