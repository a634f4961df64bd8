"""How far beyond the cameras of its sources does alignment carry a policy? Success by bearing, for docs/findings.md.

    python benchmarks/beyond.py --out outputs/beyond.json

Bodies of the camera's scenario get a scene camera that is so many degrees beyond the sector of all others, sources and
unseen ones, at the distance that keeps the workspace in view. They play, are aligned and reach. About 30 s a body on
one core; what is finished is kept, and the same command goes on.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console

from selfalign.bench.parts import parts_of, run_parts
from selfalign.bench.resident import arena_of, policy_of
from selfalign.bench.rollout import RolloutConfig, rollout
from selfalign.bench.stats import mean_success
from selfalign.bench.subject import ALIGNED, align_stepwise, body_seed, check_unchanged, collect_play, identity_of
from selfalign.bench.tables import percent
from selfalign.provenance import Stopwatch, provenance, read_own, write_json
from selfalign.sim.bodies import BodySpec, sample_bodies, tightest_distance
from selfalign.sim.regions import BEARING_LIMIT
from selfalign.sim.robots import RobotSpec

ROOT = Path(__file__).parents[1]
FORMAT = "selfalign-beyond-1"


@dataclass(frozen=True)
class Config:
    """How far, and which bodies."""

    checkpoint: Path = ROOT / "checkpoints/tiny"
    degrees: tuple[float, ...] = (10.0, 30.0)
    """Beyond the sector's limit of 70."""
    bodies: int = 8
    seed: int = 1
    play: int = 20
    """Trajectories of 50 frames."""
    episodes: int = 20
    out: Path = Path("outputs/beyond.json")
    workers: int = 2


@dataclass(frozen=True)
class Job:
    """One body at one bearing."""

    config: Config
    degrees: float
    index: int
    body: BodySpec
    folder: Path
    """Of finished parts."""
    identity: Mapping[str, Any]
    """What the policy was when the run began."""

    @property
    def key(self) -> str:
        return f"{self.degrees:g}-{self.index:03d}"

    @property
    def robots(self) -> tuple[RobotSpec]:
        return (self.body.robot,)

    @property
    def path(self) -> Path:
        return self.folder / f"{self.key}.json"


def measure(job: Job) -> str:
    """Play, alignment and reaching of a body."""
    config, policy, watch = job.config, policy_of(job.config.checkpoint), Stopwatch()
    check_unchanged(policy, job.identity)
    seed = body_seed(config.seed, 0, job.index)
    arena = arena_of(job.body)
    play = collect_play(policy, job.body, config.play, 50, seed, arena.simulations(1)[0])
    fitted = align_stepwise(policy, play, seed=seed)
    run = RolloutConfig(("reach",), config.episodes, seed)
    success = rollout(policy, job.body, fitted.contexts[ALIGNED], run, arena=arena).to_dict()
    told = {"degrees": job.degrees, "index": job.index, "body": job.body.to_dict(), "success": success}
    write_json(job.path, {**told, "verdict": fitted.result.verdict.to_dict(), "seconds": round(watch.seconds, 1)})
    return job.key


def at(body: BodySpec, degrees: float) -> BodySpec:
    """The body with its scene camera so far beyond the sector, on the side where it is."""
    bearing = float(np.copysign(BEARING_LIMIT + degrees, body.camera.azimuth))
    slack = body.camera.distance / tightest_distance(body.camera)
    camera = replace(body.camera, azimuth=bearing)
    return replace(body, camera=replace(camera, distance=slack * tightest_distance(camera)))


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Success and verdicts by bearing."""
    found = []
    for degrees in dict.fromkeys(row["degrees"] for row in rows):
        own = [row for row in rows if row["degrees"] == degrees]
        accepted = sum(row["verdict"]["accepted"] for row in own)
        success = mean_success([row["success"] for row in own]).to_dict()
        found.append({"degrees": degrees, "success": success, "accepted": accepted, "bodies": len(own)})
    return found


def main(config: Config) -> None:
    console, watch = Console(), Stopwatch()
    own = identity_of(policy_of(config.checkpoint))
    settings = {name: getattr(config, name) for name in ("degrees", "bodies", "seed", "play", "episodes")}
    identity = json.loads(json.dumps({"format": FORMAT, "settings": settings, **own}))
    result = read_own(config.out, identity)
    if result is None:
        bodies = sample_bodies(config.bodies, config.seed, "heldout", "camera")
        with parts_of(config.out, identity, console) as folder:
            jobs = [
                Job(config, degrees, index, at(body, degrees), folder, own)
                for degrees in config.degrees
                for index, body in enumerate(bodies)
            ]
            kept = run_parts("bodies", measure, jobs, lambda job: job.path, workers=config.workers, show=True)
            rows = [json.loads(job.path.read_text()) for job in jobs]
            made = {**provenance(None if kept else watch.seconds), "workers": config.workers}
            result = {**identity, "provenance": made, "summary": summary(rows), "bodies": rows}
            write_json(config.out, result)
    for row in result["summary"]:
        told = f"{row['accepted']} of {row['bodies']} accepted"
        console.print(f"{row['degrees']:g} degrees beyond: {percent(row['success'])}, {told}")


if __name__ == "__main__":
    main(tyro.cli(Config))
