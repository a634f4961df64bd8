"""Snapshots: pictures of rigs and scenes of their own, from both cameras, for the vision tower to learn on.

A tower that learns on recordings knows their few hundred cameras and looks better than any new one. Nothing has to move
for it to learn where things are, so here no two scenes share a camera or a look.
"""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from selfalign.data.snapshots import Snapshots
from selfalign.sim.bodies import BodySpec, sample_camera, sample_wrist
from selfalign.sim.claim import claim
from selfalign.sim.engine import Simulation
from selfalign.sim.prepare import prepare
from selfalign.sim.record import pixel_labels
from selfalign.sim.regions import SOURCE_ARMS, sample_appearance
from selfalign.sim.render import IMAGE_SIZE
from selfalign.sim.robots import RobotSpec
from selfalign.sim.tasks import Scene, sample_scene, sample_task
from selfalign.workers import count_one, progress_bar, run_jobs

PART = 1000
"""Snapshots that are recorded, and kept, together."""
NEAR_CUBE_SHARE, HELD_SHARE, TILTED_SHARE = 0.4, 0.05, 0.15
"""How often the tip is near a cube, holds one, or has a hand that is not vertical; else it is anywhere it can be."""
_TILT = 0.06
"""Radians, standard deviation of each joint's offset in a tilted posture."""
_FLOOR = 0.01
"""Metres above the table that the tip stays in a tilted posture."""
_LOW, _HIGH = np.array([-0.15, -0.15, 0.02]), np.array([0.15, 0.15, 0.25])
"""Where the tip is, metres."""
_MAX_TRIES = 100


@dataclass(frozen=True)
class SnapshotPlan:
    """What a set of snapshots holds; the same plan gives the same pictures, whatever the number of workers."""

    count: int = 100_000
    """Pictures; the cameras `scene` and `wrist` by turns see the same."""
    image_size: int = IMAGE_SIZE
    seed: int = 0
    arms: tuple[str, ...] = SOURCE_ARMS
    """By turns, each with the Panda gripper; one that is named more often is used more often."""

    def __post_init__(self) -> None:
        if not self.arms or not set(self.arms) <= set(SOURCE_ARMS):
            found = ", ".join(self.arms) or "none"
            raise ValueError(f"snapshots may show the arms {', '.join(SOURCE_ARMS)}; got {found}")
        if self.count < 2 or self.count % 2:
            raise ValueError(f"snapshots come in pairs: give an even count from 2 on, not {self.count}")
        if self.image_size < 1:
            raise ValueError(f"pictures need at least one pixel, got image_size={self.image_size}")

    def parts(self) -> list[int]:
        """How many snapshots each part has."""
        return [min(PART, self.count - start) for start in range(0, self.count, PART)]


def generate_snapshots(
    out: str | Path, plan: SnapshotPlan, *, workers: int | None = None, progress: bool = True
) -> Path:
    """Records snapshots of source rigs into a folder that `Snapshots.open` reads; interrupted, it goes on.

    Args:
        out: the folder, made where needed.
        plan: what to record.
        workers: processes; None: one per core, at most 8. Up to 1: record in this process.
        progress: show a bar on the terminal.

    Raises:
        ValueError: `out` holds other snapshots.
        RuntimeError: a worker died (out of memory, most likely).
    """
    out = Path(out)
    claim(out, json.dumps(asdict(plan), indent=1) + "\n", "*.npy")
    if (out / "images.npy").exists():
        shutil.rmtree(out / "parts", ignore_errors=True)  # interrupted between the last two lines below
        return out
    sizes = plan.parts()
    folders = [out / "parts" / f"{i:04d}" for i in range(len(sizes))]
    todo = [i for i, folder in enumerate(folders) if not (folder / "images.npy").exists()]
    for arm in dict.fromkeys(plan.arms):
        prepare(RobotSpec(arm, "panda"))  # once here, rather than at the same time in every worker
    work = [_Part(plan, i, sizes[i], folders[i]) for i in todo]
    with progress_bar("recording snapshots", sum(sizes[i] for i in todo), progress) as bar:
        run_jobs(_record_part, work, workers, on_count=bar.at)
    parts = [Snapshots.open(folder) for folder in folders]
    images, points = (np.concatenate([getattr(part, name) for part in parts]) for name in ("images", "points"))
    Snapshots(images, points).save(out)
    shutil.rmtree(out / "parts")
    return out


@dataclass(frozen=True)
class _Part:
    plan: SnapshotPlan
    index: int
    count: int
    folder: Path


def _record_part(part: _Part) -> None:
    """A part has one arm, so that a worker compiles and uploads one model for it."""
    plan = part.plan
    rng = np.random.default_rng([plan.seed, 7, part.index])
    robot = RobotSpec(plan.arms[part.index % len(plan.arms)], "panda")
    images, points = [], []
    with Simulation(robot) as sim:
        for _ in range(0, part.count, 2):
            rig = BodySpec(
                robot.arm,
                robot.gripper,
                sample_camera(rng, "source"),
                sample_wrist(rng, "source"),
                sample_appearance(rng, "source"),
                disguised=bool(rng.random() < 0.5),
            )
            sim.set_appearance(rig.appearance)
            sim.mount_wrist(rig.wrist)
            arrange(sim, rng)
            for camera, view in (rig.camera, rig.camera), ("wrist", sim.wrist_view):
                images.append(sim.render(camera, plan.image_size))
                points.append(pixel_labels(view, sim.landmarks).astype(np.float32))
                count_one()
    Snapshots(np.stack(images), np.stack(points)).save(part.folder)


def arrange(sim: Simulation, rng: np.random.Generator) -> None:
    """Puts robot and cubes where they may be in the middle of any task or play. Nothing moves, nothing is at rest."""
    scene = sample_scene(rng, sample_task(rng), cubes=int(rng.integers(1, 5)))
    held = rng.random() < HELD_SHARE
    for _ in range(_MAX_TRIES):
        tip = _draw_tip(rng, scene)
        try:
            sim.reset(tip, scene.cubes, rng)
        except ValueError:  # a posture from which this place is not reached
            continue
        if rng.random() < TILTED_SHARE:
            _tilt(sim, rng)
        if sim.tip[2] >= _FLOOR:
            break
    else:
        raise RuntimeError(f"{sim.robot.name} reached none of {_MAX_TRIES} drawn places: is its model damaged?")
    sim.pose_gripper(float(rng.random()), holding=scene.task.colour if held else None)


def _draw_tip(rng: np.random.Generator, scene: Scene) -> np.ndarray:
    if rng.random() >= NEAR_CUBE_SHARE:
        return rng.uniform(_LOW, _HIGH)
    cube = np.array(scene.cubes[scene.task.colour][:2])
    offset = rng.normal(scale=0.03, size=2)
    return np.clip([*(cube + offset), rng.uniform(0.02, 0.12)], _LOW, _HIGH)


def _tilt(sim: Simulation, rng: np.random.Generator) -> None:
    low, high = sim.joint_limits
    sim.pose_joints(np.clip(sim.joints + rng.normal(scale=_TILT, size=len(low)), low, high))
