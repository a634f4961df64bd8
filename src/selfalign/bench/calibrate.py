"""`selfalign bench calibrate`: what a play loss of a checkpoint is worth, measured on validation bodies.

    for each pair of bodies:  play -> align, well and badly -> episodes under every context -> rows
    all rows -> a falling curve from play loss to success -> calibration.json in the checkpoint

Badly means: after a few steps, by a random update, with the other body's context, from two trajectories, and from play
whose actions were recorded late. Without failures there is nothing to tell success from. And once more well, to play as
`selfalign play --robot` records it, which is explained at other losses.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from rich.console import Console

from selfalign.align.measure import EvalGrid
from selfalign.align.offline import judging_grid
from selfalign.align.verdict import Verdict, judge
from selfalign.baselines.samples import action_losses
from selfalign.bench import tables
from selfalign.bench.attempts import AXES, LATE, SHORT, SHORT_PLAY, read_attempts
from selfalign.bench.expectation import fit_calibration
from selfalign.bench.parts import parts_of, run_parts
from selfalign.bench.resident import policy_of
from selfalign.bench.rollout import Arena, rollout
from selfalign.bench.subject import (
    ALIGNED,
    BEFORE,
    RANDOM,
    SWAP,
    BodyContexts,
    acting_told,
    after,
    align_stepwise,
    body_seed,
    check_unchanged,
    collect_play,
    identity_of,
)
from selfalign.bench.trials import BodyTrials
from selfalign.calibration import Calibration
from selfalign.checkpoint import load, set_calibration
from selfalign.data.play import Play
from selfalign.model.context import EmbodimentContext
from selfalign.policy import Policy
from selfalign.provenance import Stopwatch, provenance, read_own, write_json
from selfalign.sim.bodies import BodySpec, sample_bodies
from selfalign.sim.playing import play_by_axes
from selfalign.sim.record import record_demonstrations
from selfalign.sim.regions import SCENARIOS, Scenario
from selfalign.sim.robots import RobotSpec
from selfalign.sim.seeds import VALIDATION_FROM

FORMAT = "selfalign-bench-calibrate-1"
LAG = 5
"""Frames by which the actions of badly recorded play come late."""


@dataclass(frozen=True)
class CalibrateConfig(BodyTrials):
    """Measure what a play loss of a checkpoint is worth, on validation bodies, and write it into the checkpoint."""

    title: ClassVar[str] = "bench calibrate"
    aside: ClassVar[tuple[str, ...]] = (*BodyTrials.aside, "out", "contexts", "check")

    bodies: int = 6
    """Bodies of each scenario, an even number: pairs try each other's contexts."""
    seed: int = VALIDATION_FROM
    """Draws bodies, play and scenes. From a million on, so that bodies on which results are reported stay unseen."""
    episodes: int = 10
    """Episodes of each body under each context."""
    steps: tuple[int, ...] = (1, 2, 4)
    """Too few steps of alignment."""
    demonstrations: int = 2
    """Demonstrations of each body on which the action loss is measured (0: none)."""
    out: Path = Path("outputs/calibration.json")
    """Where to write the measurements; also what makes an interrupted run resumable."""
    scenarios: tuple[Scenario, ...] = ("camera", "action", "robot", "all")
    """What is unseen about the bodies."""
    check: bool = False
    """Fit nothing and change nothing: judge the checkpoint's calibration on these bodies. Any seed will do."""
    contexts: Path | None = None
    """Folder to keep the aligned contexts in, for the map of `selfalign bench report`."""

    def wrong(self) -> list[str]:
        found = super().wrong()
        if self.bodies < 2 or self.bodies % 2:
            found.append(f"bodies={self.bodies} (an even number: pairs try each other's contexts)")
        if not self.scenarios or len({*self.scenarios}) < len(self.scenarios):
            found.append(f"scenarios={self.scenarios} (at least one, each once)")
        if self.seed < VALIDATION_FROM and not self.check:
            found.append(f"seed={self.seed} (at least {VALIDATION_FROM}: those below are for results; or give --check)")
        return found


@dataclass(frozen=True)
class Job:
    """Two bodies of one scenario."""

    config: CalibrateConfig
    scenario: Scenario
    index: int
    """Of the first body."""
    bodies: tuple[BodySpec, BodySpec]
    folder: Path
    """Of finished parts."""
    policy: Mapping[str, Any]
    """What the checkpoint was when the run began (`identity_of`), but for its calibration."""

    @property
    def key(self) -> str:
        return f"{self.scenario}-{self.index:03d}"

    @property
    def robots(self) -> tuple[RobotSpec, ...]:
        return tuple(body.robot for body in self.bodies)

    @property
    def row_path(self) -> Path:
        return self.folder / f"{self.key}.rows.json"

    def seed(self, which: int) -> int:
        return body_seed(self.config.seed, SCENARIOS.index(self.scenario), self.index + which)

    def context_path(self, body: BodySpec) -> Path:
        return self.folder / "contexts" / f"{self.scenario}-{body.name}.safetensors"


# ---- what a worker does --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Fitted:
    """What is known of a body before it acts."""

    body: BodySpec
    seed: int
    aligned: BodyContexts
    contexts: dict[str, EmbodimentContext]
    verdicts: dict[str, Verdict]
    grid: EvalGrid
    """Of the play that was held out."""
    action_loss: Mapping[str, float]


def measure_pair(job: Job) -> str:
    """Fits and rolls out two bodies; their rows go to the folder."""
    # Judged by losses alone: what a calibration makes of them is asked afterwards.
    policy = replace(policy_of(job.config.checkpoint), calibration=None)
    check_unchanged(policy, job.policy)
    with ExitStack() as stack:
        arenas = [stack.enter_context(Arena(body.robot)) for body in job.bodies]
        pair = [_fit_body(job.config, policy, body, job.seed(i), arenas[i]) for i, body in enumerate(job.bodies)]
        rows = []
        for i, (own, other) in enumerate(zip(pair, reversed(pair), strict=True)):
            _swap(policy, own, other)
            rows.append({"scenario": job.scenario, "index": job.index + i, **_act(job.config, policy, own, arenas[i])})
    for own in pair:
        own.contexts[ALIGNED].save(job.context_path(own.body))
    write_json(job.row_path, rows)
    return job.key


def _fit_body(config: CalibrateConfig, policy: Policy, body: BodySpec, seed: int, arena: Arena) -> Fitted:
    sim, size = arena.simulations(1)[0], policy.model.config.image_size
    play = collect_play(policy, body, config.play, config.play_length, seed, sim)
    moved = play_by_axes(body, config.play, config.play_length, seed, image_size=size, sim=sim)
    axes_play = replace(play, episodes=tuple(moved))
    fitted = align_stepwise(policy, play, config.steps, seed=seed)
    judged = fitted.result.verdict
    grid = judging_grid(policy, play, fitted.result.stats)
    contexts = {**fitted.contexts, ALIGNED: fitted.result.fitted}
    losses = {after(step): fitted.held_out[step] for step in config.steps if after(step) in contexts}
    losses |= {BEFORE: judged.before, ALIGNED: judged.after, RANDOM: _loss(policy, grid, contexts[RANDOM])}
    verdicts = {kind: judge(judged.before, loss, judged.null) for kind, loss in losses.items()}
    for kind, other in ((SHORT, play.take(SHORT_PLAY)), (LATE, late(play)), (AXES, axes_play)):
        result = align_stepwise(policy, other, seed=seed).result
        contexts[kind], verdicts[kind] = result.fitted, result.verdict
    judged_by: dict[str, float] = {}
    if config.demonstrations:
        demonstrations = record_demonstrations(
            body, config.demonstrations, seed, kinds=(config.task,), image_size=size, sim=sim
        )
        own = {kind: context for kind, context in contexts.items() if kind not in (SHORT, LATE, AXES)}
        judged_by = action_losses(policy, demonstrations, fitted.result.stats, own, seed)
    return Fitted(body, seed, fitted, contexts, verdicts, grid, judged_by)


def late(play: Play, lag: int = LAG) -> Play:
    """Play in which every action stands `lag` frames after its own."""
    episodes = tuple(replace(episode, action=np.roll(episode.action, lag, axis=0)) for episode in play.episodes)
    return replace(play, episodes=episodes)


def _loss(policy: Policy, grid: EvalGrid, context: EmbodimentContext) -> float:
    return grid.losses(policy.model, context.to(policy.device), policy.settings.weights).total


def _swap(policy: Policy, own: Fitted, other: Fitted) -> None:
    """The other body's fast weights with this body's units."""
    context = own.contexts[ALIGNED].with_tensors(other.contexts[ALIGNED].tensors)
    judged = own.aligned.result.verdict
    own.contexts[SWAP] = context
    own.verdicts[SWAP] = judge(judged.before, _loss(policy, own.grid, context), judged.null)


def _act(config: CalibrateConfig, policy: Policy, own: Fitted, arena: Arena) -> dict[str, Any]:
    """A row: episodes under every context, in the same scenes."""
    run = config.rollout(own.seed)
    success = {
        kind: rollout(policy, own.body, context, run, arena=arena).to_dict() for kind, context in own.contexts.items()
    }
    return {
        "name": own.body.name,
        "body": own.body.to_dict(),
        "success": success,
        "verdicts": {kind: own.verdicts[kind].to_dict() for kind in success},
        "action_loss": {kind: round(loss, 5) for kind, loss in own.action_loss.items()},
    }


# ---- the benchmark -------------------------------------------------------------------------------------------------


def run(config: CalibrateConfig, *, show: bool = True) -> dict[str, Any]:
    """Measures, fits, prints the curve, writes the JSON and the checkpoint's calibration; returns what the JSON holds.

    Raises:
        FileNotFoundError: no checkpoint.
        ValueError: a damaged checkpoint, one without a calibration to check, a task that a robot is not offered, an
            output that holds something else, or contexts that are asked for after the measurements.
        RuntimeError: a worker died.
        OSError: the output or the checkpoint cannot be written.
    """
    console, watch = Console(quiet=not show), Stopwatch()
    policy = load(config.checkpoint)  # not the one that workers keep: its calibration may have been an older one
    if config.check and policy.calibration is None:
        raise ValueError(f"{config.checkpoint} has no calibration to check; run `selfalign bench calibrate` first")
    own = identity_of(replace(policy, calibration=None))
    del own["calibration"]  # it is what is looked for
    identity = json.loads(json.dumps({"format": FORMAT, "settings": config.settings(), **own}))
    result = read_own(config.out, identity)
    kept = config.contexts is not None and config.contexts.is_dir() and any(config.contexts.iterdir())
    if kept and result is None:
        raise ValueError(
            f"{config.contexts} holds files already, such as contexts of other measurements; name another --contexts"
        )
    if config.contexts is not None and not kept and result is not None:
        raise ValueError(
            f"{config.out} holds these measurements already, but their contexts were not kept; leave out --contexts, "
            "or name another --out to measure again"
        )
    if result is None:
        for scenario in config.scenarios:
            for body in sample_bodies(config.bodies, config.seed, "heldout", scenario):
                config.check_offered(body)
        with parts_of(config.out, identity, console) as folder:
            jobs = list(_jobs(config, folder, own))
            done = run_parts("pairs", measure_pair, jobs, lambda job: job.row_path, workers=config.workers, show=show)
            rows = [row for job in jobs for row in json.loads(job.row_path.read_text())]
            made = {**provenance(None if done else watch.seconds), "workers": config.workers}
            result = {**identity, "provenance": made, "bodies": rows}
            with _keeping(folder / "contexts", config.contexts):
                write_json(config.out, result)  # whatever becomes of the calibration
    else:
        result = {name: result[name] for name in (*identity, "provenance", "bodies")}
        console.print(f"{config.out} holds these measurements already; remove it to measure again.")
    calibration = policy.calibration if config.check else calibration_of(result)
    assert calibration is not None
    result = {**result, "checked" if config.check else "calibration": calibration.to_dict()}
    write_json(config.out, result)
    if not config.check:
        set_calibration(config.checkpoint, calibration)
    tables.print_calibration(calibration, console)
    told = [a for row in result["bodies"] for a in read_attempts(row, "", calibration, result["settings"])]
    tables.print_attempts(told, console)
    where = "" if config.check else f" and to {config.checkpoint / 'calibration.json'}"
    console.print(f"Written to {config.out}{where}")
    return result


@contextmanager
def _keeping(made: Path, place: Path | None) -> Iterator[None]:
    """A copy of a folder, which appears whole when the block has ended well, or not at all; None: no copy.

    What needs room is copied before the block: contexts are not without their measurements, nor these without them.
    """
    if place is None:
        yield
        return
    beside = place.with_name(f"{place.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(made, beside)
    yield
    if place.is_dir():
        place.rmdir()  # an empty one, as was checked
    beside.rename(place)


def calibration_of(result: Mapping[str, Any]) -> Calibration:
    """Fits a calibration to the rows of a result."""
    attempts = [attempt for row in result["bodies"] for attempt in read_attempts(row, row["scenario"])]
    made = {name: result["provenance"][name] for name in ("command", "commit", "finished")}
    return fit_calibration(
        attempts,
        fingerprint=result["fingerprint"],
        task=result["settings"]["task"],
        source={"settings": result["settings"], **acting_told(result), **made},
        play_frames=result["settings"]["play"] * result["settings"]["play_length"],
    )


def _jobs(config: CalibrateConfig, folder: Path, own: dict[str, Any]) -> Iterator[Job]:
    for scenario in config.scenarios:
        bodies = sample_bodies(config.bodies, config.seed, "heldout", scenario)
        for index in range(0, config.bodies, 2):
            yield Job(config, scenario, index, (bodies[index], bodies[index + 1]), folder, own)
