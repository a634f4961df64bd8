"""`selfalign snapshots`: pictures of simulated rigs for the vision tower to learn on."""

from dataclasses import dataclass
from pathlib import Path

from selfalign.sim.regions import SOURCE_ARMS
from selfalign.sim.snapshots import SnapshotPlan, generate_snapshots


@dataclass(frozen=True)
class SnapshotsConfig:
    """Record pictures for the vision tower, each of a simulated rig of its own, with the places of what is in them."""

    out: Path = Path("data/snapshots")
    """Folder of the pictures. An interrupted recording goes on where it stopped."""
    count: int = 100_000
    arms: tuple[str, ...] = SOURCE_ARMS
    """By turns, each with the Panda gripper; one that is named more often is used more often."""
    image_size: int = 96
    seed: int = 0
    workers: int = 2


def run(config: SnapshotsConfig) -> None:
    """Records what is not there yet.

    Raises:
        ValueError: an arm or a number that pictures cannot have, or another recording in the folder.
    """
    plan = SnapshotPlan(config.count, config.image_size, config.seed, config.arms)
    generate_snapshots(config.out, plan, workers=config.workers)
