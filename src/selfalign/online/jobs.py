"""What the aligner's process is asked to do: measure contexts on new transitions, or fit one to them."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from selfalign.align.bank import MemoryBudget, PlayBank
from selfalign.align.measure import EvalGrid, PartLosses
from selfalign.align.offline import AlignConfig, align, judging_grid
from selfalign.align.verdict import Verdict, judge
from selfalign.data.normalize import NormStats
from selfalign.data.play import Play
from selfalign.model.context import EmbodimentContext
from selfalign.online.experience import Step, to_play
from selfalign.online.ring import Snapshot
from selfalign.policy import Policy

MEASURED = {"times": 4, "seed": 0}
"""Of the grid of a window: always the same noise and flow times."""


@dataclass(frozen=True)
class Material:
    """Which steps of which body."""

    body: str
    snapshot: Snapshot
    since: int
    """Number of the first record that counts."""
    newest: int
    """Transitions that are enough."""

    def play(self, horizon: int) -> Play:
        """Raises `ValueError` where there is no transition."""
        steps = (Step.unpack(payload) for _, payload in self.snapshot.records(self.since))
        return to_play(steps, horizon, self.body, newest=self.newest)


@dataclass(frozen=True)
class MeasureJob:
    """The play loss of contexts on the same transitions, noise and flow times."""

    material: Material
    live: Path
    """The context in use, whose statistics are used for all."""
    others: Mapping[str, Path]
    """Further contexts by any name."""

    def run(self, policy: Policy, memory_mb: float) -> dict[str, Any]:
        """`losses` by name (`live` and those of `others`), `parts` of that of `live`, and `transitions`: how many there
        were."""
        live = policy.load_context(self.live)
        play = policy.repack_play(self.material.play(policy.model.config.action_horizon))
        bank = PlayBank.build(policy, play, _stats(live), MemoryBudget(memory_mb))
        contexts = {"live": live} | {name: policy.load_context(path) for name, path in self.others.items()}
        losses = _losses(policy, EvalGrid.build(bank, samples=self.material.newest, **MEASURED), contexts)
        totals, parts = {name: parts.total for name, parts in losses.items()}, asdict(losses["live"])
        del parts["total"]
        return {"losses": totals, "parts": parts, "transitions": len(bank)}


@dataclass(frozen=True)
class AlignJob:
    """Fits a context to transitions, from the prior, and judges it against the one in use on some that are held out.

    The statistics stay those of the context in use: they belong to the robot's units, which have not changed, and what
    a robot does on its task shows only a part of its range.
    """

    material: Material
    live: Path
    out: Path
    """Where an accepted context is written."""
    steps: int | None
    min_improvement: float
    seed: int = 0

    def run(self, policy: Policy, memory_mb: float) -> dict[str, Any]:
        """`accepted`, `verdict` (as `Verdict.to_dict`, with `text`), `transitions`, `seconds`, `steps`, `curve`."""
        began = time.monotonic()
        live = policy.load_context(self.live)
        play = policy.repack_play(self.material.play(policy.model.config.action_horizon))
        # A calibration is of play. What a robot does on its task has other losses: the context in use is the measure.
        config = AlignConfig(steps=self.steps, seed=self.seed, memory_budget_mb=memory_mb, calibrated=False)
        result = align(policy, play, None, config, progress=False, stats=_stats(live))
        verdict = result.verdict
        if verdict.accepted:
            losses = _losses(
                policy, judging_grid(policy, play, result.stats, config), {"live": live, "fitted": result.fitted}
            )
            verdict = self._against_live(losses["live"].total, losses["fitted"].total, verdict)
        context = result.fitted.with_info(embodiment=self.material.body, verdict=verdict.to_dict())
        if verdict.accepted:
            context.save(self.out)
        history = result.history
        return {
            "accepted": verdict.accepted,
            "verdict": {**verdict.to_dict(), "text": str(verdict)},
            "transitions": history.train_transitions + history.held_out_transitions,
            "seconds": round(time.monotonic() - began, 2),
            "steps": history.steps,
            "curve": [list(point) for point in zip(history.held_out_steps, history.held_out["total"], strict=True)],
        }

    def _against_live(self, live: float, fitted: float, verdict: Verdict) -> Verdict:
        note = f"the prior has {verdict.before:.3g}"
        return judge(live, fitted, verdict.null, min_improvement=self.min_improvement, note=note)


def _stats(live: EmbodimentContext) -> NormStats:
    if live.info.norm_stats is None:
        raise ValueError(f"the context of {live.info.embodiment!r} carries no normalisation statistics")
    return NormStats.from_dict(live.info.norm_stats)


def _losses(policy: Policy, grid: EvalGrid, contexts: Mapping[str, EmbodimentContext]) -> dict[str, PartLosses]:
    weights = policy.settings.weights
    return {name: grid.losses(policy.model, context.to(policy.device), weights) for name, context in contexts.items()}


# ---- over a pipe ---------------------------------------------------------------------------------------------------

Job = MeasureJob | AlignJob


def to_json(job: Job) -> dict[str, Any]:
    """JSON values of a job."""
    material = {**vars(job.material), "snapshot": job.material.snapshot.to_list()}
    data = {**vars(job), "kind": type(job).__name__, "material": material, "live": str(job.live)}
    if isinstance(job, MeasureJob):
        return {**data, "others": {name: str(path) for name, path in job.others.items()}}
    return {**data, "out": str(job.out)}


def from_json(data: Mapping[str, Any]) -> Job:
    """The inverse of `to_json`."""
    fields = dict(data)
    kind, about = fields.pop("kind"), fields.pop("material")
    material = Material(**{**about, "snapshot": Snapshot.from_list(about["snapshot"])})
    live = Path(fields.pop("live"))
    if kind == MeasureJob.__name__:
        return MeasureJob(material, live, {name: Path(path) for name, path in fields["others"].items()})
    return AlignJob(material, live, Path(fields.pop("out")), **fields)
