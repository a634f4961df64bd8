"""One cell of a matrix: what a worker measures of one body, and what the bodies of a cell come to."""

import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfalign.bench.live_features import LiveFeatures
from selfalign.bench.memory import PeakMemory
from selfalign.bench.methods import fit
from selfalign.bench.plan import NARROW, Cell
from selfalign.bench.resident import arena_of, policy_of
from selfalign.bench.rollout import RolloutConfig, rollout
from selfalign.bench.stats import over_bodies
from selfalign.bench.subject import body_seed, collect_play
from selfalign.data.episodes import Episode
from selfalign.data.play import Play
from selfalign.policy import Policy
from selfalign.sim.bodies import BodySpec, sample_bodies
from selfalign.sim.record import record_demonstrations
from selfalign.sim.regions import Region
from selfalign.sim.tasks import offered

ROLES: tuple[Region, ...] = ("heldout", "source")
"""In the order by which seeds of bodies are told apart, here and in `bench adapt`: the same seed, the same play."""


@dataclass(frozen=True)
class BodyJob:
    """One body of one cell."""

    digest: str
    """Of the cell."""
    cell: Cell
    index: int
    body: BodySpec

    @property
    def seed(self) -> int:
        return body_seed(self.cell.seed, ROLES.index(self.cell.region), self.index)


def bodies_of(cell: Cell) -> list[BodySpec]:
    """The bodies of a cell.

    Raises:
        ValueError: one of them is not offered the cell's task.
    """
    bodies = sample_bodies(cell.bodies, cell.seed, cell.region, cell.scenario)
    for body in bodies:
        if not offered(cell.task, body.arm, body.gripper):
            raise ValueError(f"{cell.task} is not offered for {body.robot.name}; choose another task or scenario")
    return bodies


def measure(job: BodyJob) -> dict[str, Any]:
    """What a worker does: the row of a body; or, whatever goes wrong, `error` and where it was raised."""
    try:
        return measure_body(job)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}


def measure_body(job: BodyJob) -> dict[str, Any]:
    """Records, fits and acts, amount after amount; everything as JSON values."""
    cell, policy = job.cell, policy_of(job.cell.checkpoint)
    identity, began = policy.fingerprint(), time.perf_counter()
    play, demonstrations = record(job, policy)
    recorded = time.perf_counter() - began
    results = {}
    for amount in cell.amounts:
        of_play = play if cell.demonstrations or play is None else play.take(amount)
        results[str(amount)] = _measure_amount(job, policy, of_play, demonstrations[:amount])
    if policy.fingerprint() != identity:
        raise RuntimeError(f"{cell.method} has changed the policy that it was given; it must change a copy")
    return {
        "index": job.index,
        "name": job.body.name,
        "body": job.body.to_dict(),
        "results": results,
        "seconds": {"record": round(recorded, 2), "all": round(time.perf_counter() - began, 2)},
    }


def record(job: BodyJob, policy: Policy) -> tuple[Play | None, list[Episode]]:
    """The most play, and the most demonstrations, that the cell asks for."""
    cell, sim = job.cell, arena_of(job.body).simulations(1)[0]
    size, most, play = policy.model.config.image_size, max(cell.demonstrations, default=0), None
    shown = {"kinds": (cell.task,), "image_size": size, "sim": sim}
    if cell.play and cell.motion == "demonstrations":
        episodes = record_demonstrations(job.body, max(cell.play), job.seed, **shown)
        play = Play.from_episodes(episodes, {"name": job.body.name, **job.body.to_dict()}, job.body.name)
    elif cell.play:
        extent = NARROW if cell.motion == "narrow" else 1.0
        play = collect_play(policy, job.body, max(cell.play), cell.play_length, job.seed, sim, extent=extent)
    if play is not None and policy.settings.features is not None:
        play = LiveFeatures.like(cell.features, cell.weights).attach(play)
    # Other demonstrations than those that may serve as play.
    return play, record_demonstrations(job.body, most, body_seed(job.seed, 1), **shown)


def _measure_amount(
    job: BodyJob, policy: Policy, play: Play | None, demonstrations: Sequence[Episode]
) -> dict[str, Any]:
    cell, memory = job.cell, PeakMemory()
    fitted = fit(cell.method, policy, play, demonstrations, job.seed, cell.settings)
    peak = memory.megabytes
    run = RolloutConfig((cell.task,), cell.episodes, job.seed, cell.execute, cell.num_steps)
    success = rollout(fitted.policy, job.body, fitted.context, run, arena=arena_of(job.body)).to_dict()
    return {
        "success": success,
        "robot_seconds": round(sum(len(e) / e.fps for e in (*(play.episodes if play else ()), *demonstrations)), 1),
        "fit_seconds": round(fitted.seconds, 2),
        "peak_megabytes": peak,
        "bytes_stored": fitted.bytes_stored,
        **fitted.details,
    }


# ---- what the bodies come to ---------------------------------------------------------------------------------------


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each amount: success with its interval over bodies, and costs on average (memory: the most).

    Args:
        rows: of the bodies of one cell, as `measure_body` gives them.
    """
    summary = {}
    for amount in rows[0]["results"]:
        results = [row["results"][amount] for row in rows]
        mean = {name: sum(r[name] for r in results) / len(results) for name in ("robot_seconds", "fit_seconds")}
        verdicts = [r["verdict"]["accepted"] for r in results if "verdict" in r]
        summary[amount] = {
            "success": over_bodies([r["success"] for r in results]),
            **{name: round(value, 2) for name, value in mean.items()},
            "peak_megabytes": max(r["peak_megabytes"] for r in results),
            "bytes_stored": round(sum(r["bytes_stored"] for r in results) / len(results)),
            **({"accepted": sum(verdicts)} if verdicts else {}),
        }
    return summary
