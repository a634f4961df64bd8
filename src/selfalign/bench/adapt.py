"""The adaptation benchmark: success on unseen bodies before and after aligning, beside nulls and an oracle.

    for each held-out body:  play -> align -> episodes under each context
    for each source body:    play -> align -> episodes                        (the oracle)

Every condition of a body meets the same scenes with the same noise. Bodies are drawn from any seed; finished bodies are
kept beside the output, so an interrupted run goes on where it stopped.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from rich.console import Console
from tyro.conf import arg

from selfalign.acting import Acting
from selfalign.baselines.samples import action_losses
from selfalign.bench import tables
from selfalign.bench.parts import parts_of, run_parts
from selfalign.bench.resident import arena_of, policy_of
from selfalign.bench.rollout import rollout
from selfalign.bench.stats import bootstrap_ratio, over_bodies, rank_correlation
from selfalign.bench.subject import (
    ALIGNED,
    BEFORE,
    RANDOM,
    SWAP,
    after,
    align_stepwise,
    body_seed,
    check_unchanged,
    collect_play,
    fit_summary,
    identity_of,
)
from selfalign.bench.trials import BodyTrials
from selfalign.model.context import EmbodimentContext
from selfalign.policy import Policy
from selfalign.provenance import Stopwatch, provenance, read_own, without_places, write_json
from selfalign.sim.bodies import BodySpec, sample_bodies
from selfalign.sim.record import record_demonstrations
from selfalign.sim.regions import Scenario
from selfalign.sim.robots import RobotSpec

FORMAT = "selfalign-bench-adapt-1"
ORACLE = "oracle"
Role = Literal["heldout", "source"]
ROLES: tuple[Role, ...] = ("heldout", "source")


@dataclass(frozen=True)
class AdaptConfig(BodyTrials):
    """Success on unseen bodies before and after aligning to their play, beside nulls and an oracle."""

    title: ClassVar[str] = "bench adapt"
    aside: ClassVar[tuple[str, ...]] = (*BodyTrials.aside, "out", "speed", "temperature")

    bodies: int = 12
    """How many held-out bodies; as many source bodies for the oracle."""
    seed: int = 0
    """Draws bodies, play and scenes; any number will do (`sim/seeds.py` says which are ours, and for what)."""
    scenario: Scenario = "camera"
    """What is unseen: camera, action (the action frame), joint (joint control in an unseen joint order), robot (the
    arm), or all of camera, frame and arm at once."""
    speed: float | None = None
    """Of acting; None: the checkpoint's own. At 1 it acts as it was trained."""
    temperature: float | None = None
    """Likewise."""
    out: Annotated[Path, arg(aliases=("--json",))] = Path("outputs/bench-adapt.json")
    """Where to write the results; also what makes an interrupted run resumable."""

    @property
    def policy(self) -> Policy:
        """As it acts here."""
        return policy_of(self.checkpoint).acting_at(self.speed, self.temperature)

    def wrong(self) -> list[str]:
        Acting().but(self.speed, self.temperature)  # raises for what nothing acts with
        return super().wrong()

    @property
    def conditions(self) -> tuple[str, ...]:
        """Contexts under which a held-out body acts, in the order of the report."""
        return (BEFORE, *map(after, sorted(self.steps)), ALIGNED, RANDOM, SWAP)


@dataclass(frozen=True)
class Job:
    """One body at one stage, as a worker gets it."""

    config: AdaptConfig
    role: Role
    index: int
    body: BodySpec
    folder: Path
    """Of finished parts."""
    identity: Mapping[str, Any]
    """What the policy was when the run began (`identity_of`)."""
    partner: str | None = None
    """Name of the file with the context of another body, for the swap."""

    @property
    def key(self) -> str:
        return f"{self.role}-{self.index:03d}"

    @property
    def robots(self) -> tuple[RobotSpec]:
        return (self.body.robot,)

    def policy(self) -> Policy:
        """As it acts here; raises `RuntimeError` where the checkpoint has changed."""
        policy = self.config.policy
        check_unchanged(policy, self.identity)
        return policy

    @property
    def seed(self) -> int:
        return body_seed(self.config.seed, ROLES.index(self.role), self.index)

    @property
    def fit_path(self) -> Path:
        return self.folder / f"{self.key}.fit.json"

    @property
    def row_path(self) -> Path:
        return self.folder / f"{self.key}.row.json"

    def context_path(self, condition: str) -> Path:
        return self.folder / f"{self.key}.{condition}.safetensors"


# ---- what a worker does --------------------------------------------------------------------------------------------


def fit_body(job: Job) -> str:
    """Stage one: play and alignment; contexts and a summary go to the folder."""
    config, policy, watch = job.config, job.policy(), Stopwatch()
    sim = arena_of(job.body).simulations(1)[0]
    play = collect_play(policy, job.body, config.play, config.play_length, job.seed, sim)
    seconds = {"play": watch.lap()}
    fitted = align_stepwise(policy, play, config.steps if job.role == "heldout" else (), seed=job.seed)
    history = fitted.result.history
    seconds |= {"align": history.prepare_seconds + history.fit_seconds}
    summary = fit_summary(play, fitted)
    if config.demonstrations:
        demonstrations = record_demonstrations(
            job.body,
            config.demonstrations,
            job.seed,
            kinds=(config.task,),
            image_size=policy.model.config.image_size,
            sim=sim,
        )
        judged = {name: fitted.contexts[name] for name in (BEFORE, ALIGNED)}
        summary["action_loss"] = action_losses(policy, demonstrations, fitted.result.stats, judged, job.seed)
    for condition, context in {**fitted.contexts, "fitted": fitted.result.fitted}.items():
        context.save(job.context_path(condition))
    rounded = {name: round(value, 2) for name, value in seconds.items()}
    write_json(job.fit_path, {**summary, "seconds": rounded})
    return job.key


def evaluate_body(job: Job) -> str:
    """Stage two: episodes under every context; the finished row goes to the folder."""
    config, policy, watch = job.config, job.policy(), Stopwatch()
    run = config.rollout(job.seed)
    results = {}
    for condition, context in _contexts(job, policy):
        results[condition] = rollout(policy, job.body, context, run, arena=arena_of(job.body)).to_dict()
    summary = json.loads(job.fit_path.read_text())
    seconds = {**summary.pop("seconds"), "evaluate": round(watch.seconds, 2)}
    described = {"name": job.body.name, "role": job.role, "index": job.index, "body": job.body.to_dict()}
    write_json(job.row_path, {**described, "success": results, **summary, "seconds": seconds})
    return job.key


def _contexts(job: Job, policy: Policy) -> Iterator[tuple[str, EmbodimentContext]]:
    """The contexts under which a body acts; one that is absent (a fit that broke off) is left out."""
    if job.role == "source":
        yield ORACLE, policy.load_context(job.context_path(ALIGNED))
        return
    for condition in job.config.conditions:
        if job.context_path(condition).is_file():
            yield condition, policy.load_context(job.context_path(condition))
    if job.partner is not None:
        # The other body's fast weights with this body's units: only W is swapped.
        own, other = policy.load_context(job.context_path(ALIGNED)), policy.load_context(job.folder / job.partner)
        yield SWAP, own.with_tensors(other.tensors)


# ---- the benchmark -------------------------------------------------------------------------------------------------


def run(config: AdaptConfig, *, show: bool = True) -> dict[str, Any]:
    """Measures, prints a table, writes the JSON, and returns what it wrote.

    Raises:
        FileNotFoundError: no checkpoint.
        ValueError: a damaged checkpoint, a task that is not offered for the scenario's robot, or an output that holds
            something else.
        RuntimeError: a worker died.
        OSError: the output cannot be written; what was measured is kept.
    """
    console, watch = Console(quiet=not show), Stopwatch()
    policy = config.policy
    identity = json.loads(json.dumps({"format": FORMAT, "settings": config.settings(), **identity_of(policy)}))
    finished = read_own(config.out, identity)
    if finished is not None:
        console.print(f"{config.out} holds these results already; remove it to measure again.")
        tables.print_adapt(finished, console)
        return finished
    for role in ROLES:
        for body in sample_bodies(config.bodies, config.seed, role, config.scenario):
            config.check_offered(body)
    with parts_of(config.out, identity, console) as folder:
        jobs = _jobs(config, folder, identity_of(policy))
        kept = run_parts("fitting", fit_body, jobs, lambda job: job.fit_path, workers=config.workers, show=show)
        kept += run_parts("acting", evaluate_body, jobs, lambda job: job.row_path, workers=config.workers, show=show)
        rows = [json.loads(job.row_path.read_text()) for job in jobs]
        parameters = sum(p.numel() for p in policy.model.parameters())
        result = {
            **identity,
            "checkpoint": {"path": without_places(config.checkpoint), "parameters": parameters},
            "provenance": {**provenance(None if kept else watch.seconds), "workers": config.workers},
            "summary": summarise(rows, config.conditions),
            "bodies": rows,
        }
        write_json(config.out, result)
    tables.print_adapt(result, console)
    console.print(f"Written to {config.out}")
    return result


def _jobs(config: AdaptConfig, folder: Path, own: dict[str, Any]) -> list[Job]:
    jobs = []
    for role in ROLES:
        bodies = sample_bodies(config.bodies, config.seed, role, config.scenario)
        for index, body in enumerate(bodies):
            job = Job(config, role, index, body, folder, own)
            following = dataclasses.replace(job, index=(index + 1) % config.bodies)
            partner = following.context_path("fitted").name if role == "heldout" and config.bodies > 1 else None
            jobs.append(dataclasses.replace(job, partner=partner))
    return jobs


# ---- what it comes to ----------------------------------------------------------------------------------------------


def summarise(rows: list[dict[str, Any]], conditions: tuple[str, ...]) -> dict[str, Any]:
    """Means over bodies with their intervals, and the checks of whether alignment means anything.

    Args:
        rows: of held-out and source bodies, as the workers write them.
        conditions: in the order of the report.
    """
    held_out, source = ([row for row in rows if row["role"] == role] for role in ROLES)
    groups = {name: [row["success"][name] for row in held_out if name in row["success"]] for name in conditions}
    groups[ORACLE] = [row["success"][ORACLE] for row in source]
    shares = {name: [result["value"] for result in results] for name, results in groups.items() if results}
    success = {name: over_bodies(groups[name]) for name in shares}
    oracle = shares[ORACLE]
    ratio = bootstrap_ratio(shares[ALIGNED], oracle).to_dict() if sum(oracle) else None
    return {
        "success": success,
        "aligned_over_oracle": ratio,
        "accepted": sum(row["verdict"]["accepted"] for row in held_out),
        "play_loss_drop_vs_action_loss_gain": _transfer(held_out),
        "seconds_per_body": {
            name: round(sum(row["seconds"][name] for row in held_out) / len(held_out), 2)
            for name in ("play", "align", "evaluate")
        },
        "context_megabytes": held_out[0]["context_megabytes"],
    }


def _transfer(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Does what alignment lowers (play loss) go with what it is for (action loss)? Over bodies whose fit was accepted:
    the others have the prior."""
    with_loss = [row for row in rows if row["verdict"]["accepted"] and row.get("action_loss")]
    if not with_loss:
        return None
    drops = [row["verdict"]["before"] - row["verdict"]["after"] for row in with_loss]
    gains = [row["action_loss"][BEFORE] - row["action_loss"][ALIGNED] for row in with_loss]
    rho = rank_correlation(drops, gains)
    return {
        "rank_correlation": None if rho is None else round(rho, 4),
        "mean_play_loss_drop": round(sum(drops) / len(drops), 5),
        "mean_action_loss_gain": round(sum(gains) / len(gains), 5),
    }
