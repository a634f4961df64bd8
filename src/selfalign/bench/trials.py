"""What `bench adapt` and `bench calibrate` ask of every body, as flags."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from selfalign.bench.rollout import RolloutConfig
from selfalign.configs import below, refuse
from selfalign.sim.bodies import BodySpec
from selfalign.sim.tasks import Kind, offered


@dataclass(frozen=True)
class BodyTrials:
    """Bodies that play, are aligned, and act."""

    title: ClassVar[str] = "bench"
    """Of the command, for errors."""
    aside: ClassVar[tuple[str, ...]] = ("checkpoint", "workers")
    """Fields that the numbers do not depend on, or not by their value."""

    checkpoint: Path = Path("checkpoints/tiny")
    """Checkpoint directory."""
    bodies: int = 12
    """How many bodies."""
    seed: int = 0
    """Draws bodies, play and scenes."""
    play: int = 20
    """Play trajectories of each body."""
    play_length: int = 50
    """Frames of each play trajectory, at 20 Hz."""
    episodes: int = 20
    """Episodes of each body under each context."""
    task: Kind = "reach"
    """What the bodies are asked to do."""
    steps: tuple[int, ...] = (10, 30, 100, 300)
    """Alignment steps after which success is measured."""
    demonstrations: int = 4
    """Demonstrations of each body on which the action loss is measured, before and after (0: none)."""
    execute: int = 4
    """Steps of each action chunk that are carried out before the policy is asked again."""
    num_steps: int = 10
    """Euler steps of the flow per chunk."""
    workers: int = 2
    """Processes, each with one thread."""

    def __post_init__(self) -> None:
        refuse(self.title, self.wrong())

    def wrong(self) -> list[str]:
        """What is refused, and why."""
        least = {"bodies": 1, "play": 2, "episodes": 1, "play_length": 2, "demonstrations": 0, "workers": 1, "seed": 0}
        found = below(self, **least, execute=1, num_steps=1)
        if not self.steps or min(self.steps) < 1:
            found.append(f"steps={self.steps} (at least one, each at least 1)")
        return found

    def settings(self) -> dict[str, Any]:
        """What the numbers depend on, beside the checkpoint's weights."""
        return {name: value for name, value in asdict(self).items() if name not in self.aside}

    def rollout(self, seed: int) -> RolloutConfig:
        """How a body acts whose seed that is."""
        return RolloutConfig((self.task,), self.episodes, seed, self.execute, self.num_steps)

    def check_offered(self, body: BodySpec) -> None:
        """Raises `ValueError` where the body's robot is not offered the task."""
        if not offered(self.task, body.arm, body.gripper):
            raise ValueError(f"{self.task} is not offered for {body.robot.name}; choose another task or scenario")
