"""`align`: fits a body's context to its play. Nothing but the context W moves.

    split play -> compute prefixes once -> repeat: gradient of the alignment losses, Adam step on W -> judge

The held-out loss is measured on the same samples, noise and flow times every time, so its changes are changes of W.
"""

import math
import time
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selfalign.align.bank import MemoryBudget, PlayBank
from selfalign.align.measure import EvalGrid, PartLosses, draw_noise, gradient, null_loss
from selfalign.align.optim import FastAdam, grad_norm
from selfalign.align.progress import StartPhase, phases
from selfalign.align.verdict import Verdict, judge
from selfalign.calibration import Calibration
from selfalign.configs import below, refuse
from selfalign.data.normalize import NormStats
from selfalign.data.play import Play
from selfalign.model import flow
from selfalign.model.context import EmbodimentContext
from selfalign.model.contexts import Coordinates
from selfalign.model.losses import Losses, LossWeights
from selfalign.model.policy import VLA
from selfalign.policy import UNKNOWN_DISPLACEMENTS, Policy
from selfalign.settings import AlignSettings

UNREHEARSED = "this checkpoint has not rehearsed alignment: a lower play loss need not make it act better"


@dataclass(frozen=True)
class AlignConfig:
    """How to fit. What is None is taken from the checkpoint, which was rehearsed with it."""

    steps: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    betas: tuple[float, float] | None = None
    weights: LossWeights | None = None
    """Of the losses; `action` has no part in it."""
    clip_norm: float | None = None
    """Bound of the gradient's norm; infinity for none."""
    decay_steps: float | None = None
    """How fast the rate falls (see `FastAdam`); infinity for a constant one."""
    holdout: float = 0.2
    """Share of the trajectories that judges and is not fitted."""
    eval_every: int = 10
    """Steps between measurements of the held-out loss."""
    eval_samples: int = 64
    """Held-out transitions, evenly spread, that are measured."""
    eval_times: int = 4
    """Flow times at which each of them is measured."""
    patience: int | None = 5
    """Stop after so many measurements without a better one; None: never."""
    loss_threshold: float | None = None
    """Stop as soon as the held-out loss is at most this."""
    min_improvement: float = 0.02
    """Share by which the held-out loss must fall to be accepted."""
    null_draws: int = 4
    """Random updates that the verdict compares with."""
    calibrated: bool = True
    """The verdict goes by the checkpoint's calibration too, where it has one."""
    seed: int = 0
    interruptible: bool = True
    """Ctrl-C ends the fit with the best context so far; False: it ends everything, as a measurement must."""
    memory_budget_mb: float = 2048.0
    """Main memory for the prefixes of the play; beyond it they go to a file."""
    spill_dir: Path | None = None
    """Folder of that file; None: the system's temporary folder."""

    def __post_init__(self) -> None:
        counts = ("steps", "batch_size", "eval_every", "eval_samples", "eval_times", "patience", "null_draws")
        wrong = below(self, **dict.fromkeys(counts, 1))
        if not 0 <= self.min_improvement < 1:
            wrong.append(f"min_improvement={self.min_improvement} (at least 0, and below 1)")
        refuse("AlignConfig", wrong)

    def resolved(self, settings: AlignSettings) -> AlignSettings:
        """The checkpoint's settings with what this config says otherwise."""
        names = ("steps", "batch_size", "learning_rate", "betas", "weights", "clip_norm", "decay_steps")
        own = {name: value for name in names if (value := getattr(self, name)) is not None}
        own.update({name: None for name in ("clip_norm", "decay_steps") if own.get(name) == math.inf})
        return replace(settings, **own)


@dataclass(frozen=True)
class AlignmentHistory:
    """What happened, step by step. Losses are by part: total, perception, dynamics, inverse, ttt."""

    train: Mapping[str, tuple[float, ...]]
    """Of each step's batch, before the step."""
    grad_norm: tuple[float, ...]
    """Of each step, before clipping."""
    held_out_steps: tuple[int, ...]
    """Steps after which the held-out loss was measured; 0 is the start context."""
    held_out: Mapping[str, tuple[float, ...]]
    best_step: int
    """The step whose context is kept."""
    stopped: str
    """Why it ended where it did."""
    train_transitions: int
    held_out_transitions: int
    prepare_seconds: float
    """For the vision tower and the prefixes."""
    fit_seconds: float

    @property
    def steps(self) -> int:
        """Steps taken."""
        return len(self.grad_norm)

    def to_dict(self) -> dict[str, Any]:
        """JSON values; a number that is not finite becomes null."""
        return {f.name: _jsonable(getattr(self, f.name)) for f in fields(self)}


@dataclass(frozen=True)
class AlignmentResult:
    """What `align` returns."""

    context: EmbodimentContext
    """The fitted context if it was accepted, else the start context."""
    history: AlignmentHistory
    verdict: Verdict
    stats: NormStats
    """Normalisation statistics of the play, or those that were given."""
    fitted: EmbodimentContext
    """The best context that was found, accepted or not."""
    snapshots: Mapping[int, EmbodimentContext] = field(default_factory=dict)
    """Contexts after the steps that were asked for, accepted or not."""


def align(
    policy: Policy,
    play: Play,
    start: EmbodimentContext | None = None,
    config: AlignConfig = AlignConfig(),
    *,
    progress: bool = True,
    snapshots: Collection[int] = (),
    stats: NormStats | None = None,
) -> AlignmentResult:
    """Fits a context to a body's play and judges it on trajectories that it was not fitted to.

    Ctrl-C ends the fitting early and keeps the best context so far.

    Args:
        policy: its model stays as it is.
        play: of one body; no task, no labels.
        start: where to begin; None: the prior W0, which is what the model was rehearsed with. A context of another
            body is a worse start than W0.
        config: what to do otherwise than the checkpoint says.
        progress: show a progress bar.
        snapshots: steps after which to keep a copy of the context. Patience waits for the last of them.
        stats: normalisation of the body where it is known, for play that shows only some of its motion; None: the
            play's own.

    Raises:
        ValueError: play that is too short or does not fit the model; a start context of another model.
        OSError: no room for the prefixes that exceed the memory budget.
    """
    plan = config.resolved(policy.settings)
    origin = _origin(policy, start)
    play = policy.repack_play(play)
    parts = _split(policy, play, config)
    stats = policy.play_stats(play) if stats is None else stats
    stats = policy.with_displacements(stats, play)
    if policy.acting.speed != 1 and stats.displacements is None:
        warnings.warn(UNKNOWN_DISPLACEMENTS, stacklevel=2)
    began = time.perf_counter()
    with _frozen(policy.model), phases(progress, play.name) as phase:
        report = phase("watching play", len(play))
        budget = MemoryBudget(config.memory_budget_mb, config.spill_dir)
        train, held = (PlayBank.build(policy, part, stats, budget, lambda _: report("")) for part in parts)
        grid = _grid(held, config)
        prepared = time.perf_counter()
        fit = _Fit(policy.model, grid, plan, config, origin)
        fit.run(train, frozenset(snapshots), phase)
        null = null_loss(
            grid,
            policy.model,
            origin,
            fit.best.distance(origin),
            plan.weights,
            draws=config.null_draws,
            seed=config.seed,
        )
    verdict = fit.verdict(null, _calibration(policy, plan, config), sum(map(len, play.episodes)))
    history = fit.history(len(train), len(held), prepared - began, time.perf_counter() - prepared)
    return _result(policy, play, start, stats, fit, history, verdict)


# ---- the fit, as a story -------------------------------------------------------------------------------------------


@dataclass
class _Fit:
    """What is given to a fit, and everything that changes while it runs."""

    model: VLA
    grid: EvalGrid
    plan: AlignSettings
    config: AlignConfig
    origin: EmbodimentContext
    coordinates: Coordinates = field(init=False)
    """Where the fit is, seen from the origin."""
    best: EmbodimentContext = field(init=False)
    best_loss: float = math.inf
    best_step: int = 0
    train: list[tuple[PartLosses, float]] = field(default_factory=list)
    """Losses and gradient norm of each step."""
    held_out: list[tuple[int, PartLosses]] = field(default_factory=list)
    snapshots: dict[int, EmbodimentContext] = field(default_factory=dict)
    stopped: str = ""
    problem: str = ""
    """Why it must be rejected, whatever the losses."""
    note: str = ""

    def __post_init__(self) -> None:
        self.coordinates, self.best = self.model.contexts.zeros(self.origin), self.origin.clone()

    @property
    def context(self) -> EmbodimentContext:
        """The context where the fit is."""
        return self.model.contexts.context(self.origin, self.coordinates).detach()

    def run(self, bank: PlayBank, snapshots: frozenset[int], phase: StartPhase) -> None:
        """Steps and measurements until something says stop."""
        self.measure(0)
        try:
            self._steps(bank, {step for step in snapshots if step <= self.plan.steps}, phase)
        except KeyboardInterrupt:
            if not self.config.interruptible:
                raise
            self.stopped = self.note = f"interrupted after {len(self.train)} of {self.plan.steps} steps"
        if not self.train:
            self.problem = "no step was taken"
        elif not self.problem and self.held_out[-1][0] < len(self.train):
            self.measure(len(self.train))

    def _steps(self, bank: PlayBank, keep: set[int], phase: StartPhase) -> None:
        plan, config = self.plan, self.config
        optimizer = FastAdam(plan.learning_rate, plan.betas, clip_norm=plan.clip_norm, decay_steps=plan.decay_steps)
        state = optimizer.init(self.coordinates)
        generator = torch.Generator().manual_seed(config.seed)
        report = phase("aligning", plan.steps)
        for step in range(1, plan.steps + 1):
            losses, grads = self._batch_gradient(bank, generator)
            parts, norm = PartLosses.of(losses), float(grad_norm(grads, batched=False))
            if not math.isfinite(parts.total) or not math.isfinite(norm):
                self.stopped = self.problem = f"the loss was not finite at step {step}; lower the learning rate"
                return
            self.coordinates, state = optimizer.step(self.coordinates, grads, state)
            self.train.append((parts, norm))
            if step in keep:
                self.snapshots[step] = self.context
            if step % config.eval_every == 0 or step in keep or step == plan.steps:
                self.measure(step)
            report(f"held-out loss {self.held_out[0][1].total:.2f} -> {self.held_out[-1][1].total:.2f}")
            self.stopped = self._reason_to_stop(waiting=any(later > step for later in keep))
            if self.stopped:
                return
        self.stopped = f"all {plan.steps} steps taken"

    def measure(self, step: int) -> None:
        """Measures the context on the held-out grid, and keeps it if it is the best so far."""
        context = self.context
        losses = self.grid.losses(self.model, context, self.plan.weights)
        self.held_out.append((step, losses))
        if step > 0 and losses.total < self.best_loss:
            self.best, self.best_loss, self.best_step = context, losses.total, step

    def _batch_gradient(self, bank: PlayBank, generator: torch.Generator) -> tuple[Losses, list[Tensor]]:
        """Of a random batch; where there are fewer transitions than a batch holds, they are drawn with repetition."""
        size = self.plan.batch_size
        if len(bank) >= size:
            rows = torch.randperm(len(bank), generator=generator)[:size]
        else:
            rows = torch.randint(len(bank), (size,), generator=generator)
        batch, prefix = bank.batch(rows)
        noise = draw_noise(batch, generator)
        times = flow.sample_time(size, generator=generator).to(bank.device)
        return gradient(
            self.model,
            batch,
            self.origin,
            self.coordinates,
            noise=noise,
            time=times,
            weights=self.plan.weights,
            prefix=prefix,
        )

    def _reason_to_stop(self, *, waiting: bool) -> str:
        threshold, patience = self.config.loss_threshold, self.config.patience
        if threshold is not None and self.best_loss <= threshold:
            return f"the held-out loss is at most {threshold}"
        worse = sum(step > self.best_step for step, _ in self.held_out if step > 0)
        if patience is not None and worse >= patience and not waiting:
            return f"no better held-out loss in {worse} measurements"
        return ""

    def verdict(self, null: float, calibration: Calibration | None, play_frames: int) -> Verdict:
        notes = (self.note, "" if self.plan.rehearsed else UNREHEARSED)
        return judge(
            self.held_out[0][1].total,
            self.best_loss,
            null,
            min_improvement=self.config.min_improvement,
            problem=self.problem,
            note="; ".join(note for note in notes if note),
            calibration=calibration,
            play_frames=play_frames,
        )

    def history(self, train: int, held_out: int, prepare_seconds: float, fit_seconds: float) -> AlignmentHistory:
        return AlignmentHistory(
            train=_columns([parts for parts, _ in self.train]),
            grad_norm=tuple(norm for _, norm in self.train),
            held_out_steps=tuple(step for step, _ in self.held_out),
            held_out=_columns([losses for _, losses in self.held_out]),
            best_step=self.best_step,
            stopped=self.stopped,
            train_transitions=train,
            held_out_transitions=held_out,
            prepare_seconds=prepare_seconds,
            fit_seconds=fit_seconds,
        )


# ---- before and after ----------------------------------------------------------------------------------------------


def _origin(policy: Policy, start: EmbodimentContext | None) -> EmbodimentContext:
    """The context to begin with, on the model's device."""
    if start is None:
        return policy.model.prior().clone()
    if start.batched:
        raise ValueError("align fits one context: take one of a batch with context.index(i)")
    policy.check_context(start)
    return start.clone().to(policy.device)


def _calibration(policy: Policy, plan: AlignSettings, config: AlignConfig) -> Calibration | None:
    """What the verdict goes by. Losses with other weights than the checkpoint's are other numbers."""
    return policy.calibration if config.calibrated and plan.weights == policy.settings.weights else None


def _split(policy: Policy, play: Play, config: AlignConfig) -> tuple[Play, Play]:
    """Play to fit and play to judge, each with at least one transition."""
    model = policy.model.config
    play.require(model.action_horizon, cameras=model.cameras, state_dim=model.state_dim, action_dim=model.action_dim)
    parts = play.split(config.holdout, config.seed)
    for part, role in zip(parts, ("fit", "judge"), strict=True):
        if part.num_transitions(model.action_horizon) == 0:
            lengths = ", ".join(str(len(episode)) for episode in part.episodes)
            raise ValueError(
                f"{play.name} is too short: its {len(play)} episodes leave episodes of {lengths} frames to {role}, and "
                f"a transition needs {model.action_horizon + 1}; record more or longer ones, or change "
                f"holdout={config.holdout}"
            )
    return parts


def judging_grid(policy: Policy, play: Play, stats: NormStats, config: AlignConfig = AlignConfig()) -> EvalGrid:
    """The held-out transitions, noise and flow times by which `align` judges a fit to this play, with this config.

    Args:
        stats: those of the fit.

    Raises:
        ValueError: as `align`.
    """
    _, held = _split(policy, policy.repack_play(play), config)
    return _grid(PlayBank.build(policy, held, stats, MemoryBudget(config.memory_budget_mb, config.spill_dir)), config)


def _grid(held: PlayBank, config: AlignConfig) -> EvalGrid:
    return EvalGrid.build(held, samples=config.eval_samples, times=config.eval_times, seed=config.seed)


def _result(
    policy: Policy,
    play: Play,
    start: EmbodimentContext | None,
    stats: NormStats,
    fit: _Fit,
    history: AlignmentHistory,
    verdict: Verdict,
) -> AlignmentResult:
    """Puts this body's name and statistics on every context that was made here."""

    def labelled(context: EmbodimentContext, **more: Any) -> EmbodimentContext:
        name = str(play.embodiment.get("name", play.name))
        own = {"fingerprint": policy.fingerprint(), "norm_stats": stats.to_dict(), "robot": policy.converted_by}
        return context.with_info(**{"embodiment": name, "history": None, "verdict": None, **own, **more})

    fitted = labelled(fit.best, history=history.to_dict(), verdict=verdict.to_dict())
    rejected = labelled(fit.origin, verdict=verdict.to_dict()) if start is None else start
    return AlignmentResult(
        context=fitted if verdict.accepted else rejected,
        history=history,
        verdict=verdict,
        stats=stats,
        fitted=fitted,
        snapshots={step: labelled(context) for step, context in fit.snapshots.items()},
    )


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """The model in eval mode without trainable parameters; afterwards as it was."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _columns(rows: Sequence[PartLosses]) -> dict[str, tuple[float, ...]]:
    return {f.name: tuple(asdict(row)[f.name] for row in rows) for f in fields(PartLosses)}


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_jsonable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
