"""`selfalign sources`: demonstrations and play of many simulated rigs."""

from dataclasses import dataclass
from pathlib import Path

from selfalign.data.sources import RECORDED
from selfalign.sim.bodies import sample_rigs
from selfalign.sim.regions import SOURCE_ARMS
from selfalign.sim.sources import SourcePlan, generate_sources
from selfalign.sim.tasks import Kind


@dataclass(frozen=True)
class SourcesConfig:
    """Record the simulated source data set: play and demonstrations of many rigs, as LeRobot data sets."""

    out: Path = Path(RECORDED)
    """Folder of the shards. An interrupted recording goes on where it stopped."""
    rigs: int = 300
    """Robots with a camera and looks of their own."""
    arms: tuple[str, ...] = SOURCE_ARMS
    """By turns, each with the Panda gripper; one that is named more often is used more often."""
    cameras: int | None = None
    """Camera poses that the rigs share; None: each has its own. (1 is what adapting to cameras is compared with.)"""
    play_per_rig: int = 8
    """Play trajectories of 50 frames."""
    demonstrations_per_rig: int = 16
    kinds: tuple[Kind, ...] = ("reach", "reach", "reach", "push", "lift")
    """Tasks to draw from; one that is named more often is drawn more often."""
    image_size: int = 96
    plain: bool = False
    """As a real robot would be recorded: cameras as video, named dimensions, nothing that only a simulator knows."""
    seed: int = 0
    workers: int = 2


def run(config: SourcesConfig) -> None:
    """Records what is not there yet.

    Raises:
        ValueError: an arm or a number that sources cannot have, or another recording in the folder.
    """
    plan = SourcePlan(
        tuple(sample_rigs(config.rigs, config.seed, tuple((arm, "panda") for arm in config.arms), config.cameras)),
        config.play_per_rig,
        config.demonstrations_per_rig,
        config.kinds,
        config.image_size,
        config.seed,
        rigs_per_shard=max(3, config.rigs // 100),
        plain=config.plain,
    )
    generate_sources(config.out, plan, workers=config.workers)
