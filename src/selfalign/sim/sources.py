"""The whole source data set: many rigs, recorded by worker processes into LeRobot shards."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfalign.data.lerobot import LeRobotWriter
from selfalign.data.schema import ACTION, STATE
from selfalign.sim.bodies import BodySpec
from selfalign.sim.claim import alone, claim
from selfalign.sim.engine import Simulation
from selfalign.sim.prepare import prepare
from selfalign.sim.record import Recorder, rig_episodes
from selfalign.sim.regions import SOURCE_ARMS, appearance_region, bearing_region, wrist_region
from selfalign.sim.render import IMAGE_SIZE
from selfalign.sim.tasks import Kind, offered
from selfalign.workers import count_one, progress_bar, run_jobs


@dataclass(frozen=True)
class SourcePlan:
    """What a source data set holds; the same plan and seed give the same data, whatever the number of workers."""

    rigs: tuple[BodySpec, ...]
    play_per_rig: int = 32
    """Trajectories of 50 frames."""
    demonstrations_per_rig: int = 16
    kinds: tuple[Kind, ...] = ("reach",)
    """Tasks of the demonstrations, drawn uniformly from those offered for the rig's robot."""
    image_size: int = IMAGE_SIZE
    seed: int = 0
    rigs_per_shard: int = 4
    plain: bool = False
    """As a real robot would be recorded: cameras as video, dimensions with names, robots told by name only, and no
    column that a simulator alone can give."""

    def __post_init__(self) -> None:
        for rig in self.rigs:
            reasons = {
                f"its arm is {rig.arm}": rig.arm not in SOURCE_ARMS,
                "its camera is not in the source region": bearing_region(rig.camera.azimuth) != "source",
                "its camera on the hand is not in the source region": wrist_region(rig.wrist.bearing) != "source",
                "its appearance is held out": appearance_region(rig.appearance_seed or 0) != "source",
            }
            for reason, holds in reasons.items():
                if holds:
                    raise ValueError(f"{rig.name} cannot be a source: {reason}")
        if not self.rigs or min(self.play_per_rig, self.demonstrations_per_rig) < 0:
            raise ValueError("a source data set needs at least one rig and no negative counts")
        if self.image_size < 1:
            raise ValueError(f"pictures need at least one pixel, got image_size={self.image_size}")

    @property
    def episodes(self) -> int:
        return len(self.rigs) * (self.play_per_rig + self.demonstrations_per_rig)

    def shards(self) -> list[list[int]]:
        """Rig indices of each shard; a shard has one robot, so that a worker compiles and uploads one model for it."""
        robots = dict.fromkeys(rig.robot for rig in self.rigs)
        shards = []
        for robot in robots:
            indices = [i for i, rig in enumerate(self.rigs) if rig.robot == robot]
            shards += [indices[i : i + self.rigs_per_shard] for i in range(0, len(indices), self.rigs_per_shard)]
        return sorted(shards)

    def to_dict(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        if not self.plain:
            del values["plain"]  # so that folders of plans from before go on
        return values | {"rigs": [rig.to_dict() for rig in self.rigs], "kinds": list(self.kinds)}


def generate_sources(
    out: str | Path, plan: SourcePlan, *, workers: int | None = None, progress: bool = True
) -> list[Path]:
    """Records a source data set as `out/shard-000`, `out/shard-001`, ..., each a LeRobot data set by itself.

    A shard appears when it is complete; called again after an interruption, finished shards are kept and the others are
    recorded. Every shard's `meta/embodiments.json` lists all rigs, so embodiment indices mean the same in each.

    Args:
        out: folder of the shards, made where needed.
        plan: what to record.
        workers: processes; None: one per core, at most 8. Up to 1: record in this process.
        progress: show a bar on the terminal.

    Returns:
        The shards' folders.

    Raises:
        ValueError: `out` holds the shards of another plan, or another process records into it.
        RuntimeError: a worker died (out of memory, most likely).
    """
    out = Path(out)
    claim(out, json.dumps(plan.to_dict(), indent=1) + "\n", "shard-*")
    with alone(out):
        return _generate(out, plan, workers, progress)


def _generate(out: Path, plan: SourcePlan, workers: int | None, progress: bool) -> list[Path]:
    shards = plan.shards()
    paths = [out / f"shard-{i:03d}" for i in range(len(shards))]
    todo = [i for i, path in enumerate(paths) if not path.exists()]
    for leftover in out.glob(".shard-*.partial-*"):  # of processes that are gone: nobody else records here
        shutil.rmtree(leftover)
    for robot in dict.fromkeys(plan.rigs[shards[i][0]].robot for i in todo):
        prepare(robot)  # once here, rather than at the same time in every worker
    work = [_Shard(plan, paths[i], shards[i]) for i in todo]
    episodes = sum(len(shards[i]) for i in todo) * (plan.play_per_rig + plan.demonstrations_per_rig)
    with progress_bar("recording episodes", episodes, progress) as bar:
        run_jobs(_record_shard, work, workers, on_count=bar.at)
    return paths


@dataclass(frozen=True)
class _Shard:
    plan: SourcePlan
    path: Path
    rigs: Sequence[int]


def _record_shard(shard: _Shard) -> None:
    plan, path, rigs = shard.plan, shard.path, shard.rigs
    embodiments = [{"name": rig.name} if plan.plain else {"name": rig.name, **rig.to_dict()} for rig in plan.rigs]
    robot = plan.rigs[rigs[0]].robot
    names = {STATE: ["x", "y", "z", "opening"], ACTION: ["x", "y", "z", "gripper"]} if plan.plain else {}
    kinds: tuple[Kind, ...] = tuple(kind for kind in plan.kinds if offered(kind, robot.arm, robot.gripper))
    with (
        Simulation(robot) as sim,
        LeRobotWriter(path, embodiments=embodiments, robot_type=robot.name, names=names, video=plan.plain) as writer,
    ):
        for index in rigs:
            recorder = Recorder(plan.rigs[index], sim, plan.image_size, not plan.plain, embodiment_index=index)
            counts = plan.play_per_rig, plan.demonstrations_per_rig if kinds else 0
            for episode in rig_episodes(recorder, *counts, kinds, plan.seed):
                writer.add_episode(episode)
                count_one()
