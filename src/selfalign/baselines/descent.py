"""Gradient descent on some parameters of a model, as every method but `selfalign` uses it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from selfalign.align.optim import FastAdam, FastAdamState, grad_norm
from selfalign.align.progress import phases
from selfalign.train.bookmark import Bookmark

LossOf = Callable[[torch.Generator], Tensor]
"""The loss of a batch that the generator draws."""


@dataclass(frozen=True)
class Descent:
    """Adam with a rate that falls to zero as a cosine, and clipped gradients."""

    steps: int
    learning_rate: float
    clip_norm: float = 1.0
    eval_every: int = 10
    """Steps between measurements of the held-out loss, where there is one."""
    patience: int | None = 5
    """Stop after so many measurements without a better one; None: never."""

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * step / self.steps))


@dataclass
class DescentHistory:
    """What happened; losses are of each step's batch, before the step."""

    train: list[float] = field(default_factory=list)
    held_out_steps: list[int] = field(default_factory=list)
    held_out: list[float | None] = field(default_factory=list)
    """None where it was not finite."""
    best_step: int = 0
    """The step whose parameters are kept."""
    stopped: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def descend(
    parameters: Sequence[nn.Parameter],
    loss_of: LossOf,
    plan: Descent,
    *,
    seed: int,
    held_out: Callable[[], float] | None = None,
    bookmark: Bookmark | None = None,
    title: str = "",
    progress: bool = False,
) -> DescentHistory:
    """Moves parameters down a loss, in place.

    With a `held_out` loss, the parameters end where it was least, the start included; without one, after all steps. A
    loss that is not finite ends the descent before it moves anything.

    Args:
        bookmark: written every `plan.eval_every` steps, and gone on from where it is there. The caller removes it when
            what was fitted is safe.

    Raises:
        ValueError: a bookmark that is damaged or of another descent.
    """
    under_way = _UnderWay(tuple(parameters), plan, seed, held_out)
    if bookmark is not None and (state := bookmark.read()) is not None:
        under_way.load_state_dict(state)
    else:
        under_way.measure()
    with phases(progress, title) as phase:
        report = phase("fitting", plan.steps)
        for loss in under_way.history.train:
            report(f"loss {loss:.3f}")
        while not under_way.history.stopped:
            loss = under_way.advance(loss_of)
            report(f"loss {loss:.3f}")
            if bookmark is not None and under_way.step % plan.eval_every == 0:
                bookmark.write(under_way.state_dict())
    return under_way.end()


class _UnderWay:
    """A descent: all that it takes to go on with it."""

    def __init__(
        self, parameters: tuple[nn.Parameter, ...], plan: Descent, seed: int, held_out: Callable[[], float] | None
    ):
        self.parameters, self.plan = parameters, plan
        self.step, self.history = 0, DescentHistory()
        self.generator = torch.Generator().manual_seed(seed)
        self.optimizer = FastAdam(plan.learning_rate, clip_norm=plan.clip_norm)
        self.moments = self.optimizer.init(parameters)
        self.judge = None if held_out is None else _Judge(held_out, parameters, self.history)

    def measure(self) -> None:
        """The held-out loss where it is due, and whether this was the last step."""
        plan, history, judge = self.plan, self.history, self.judge
        if judge is None:
            history.best_step = self.step
        elif self.step % plan.eval_every == 0 or self.step == plan.steps:
            judge.measure(self.step)
        if judge is not None and plan.patience is not None and judge.waited >= plan.patience:
            history.stopped = f"no better held-out loss in {judge.waited} measurements"
        elif self.step == plan.steps:
            history.stopped = f"all {plan.steps} steps taken"

    def advance(self, loss_of: LossOf) -> float:
        """One step, and what is measured after it; returns the loss before it."""
        loss = loss_of(self.generator)
        gradient = _gradient(loss, self.parameters)
        self.step += 1
        if not (torch.isfinite(loss) and torch.isfinite(grad_norm(gradient, batched=False))):
            self.history.stopped = f"the loss was not finite at step {self.step}; lower the learning rate"
        else:
            optimizer = replace(self.optimizer, lr=self.plan.rate(self.step - 1))
            moved, self.moments = optimizer.step(self.parameters, gradient, self.moments)
            _assign(self.parameters, moved)
            self.history.train.append(float(loss.detach()))
            self.measure()
        return float(loss.detach())

    def end(self) -> DescentHistory:
        """Leaves the parameters where they are best."""
        if self.judge is not None:
            _assign(self.parameters, self.judge.kept)
        return self.history

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors, as `torch.load` takes them with `weights_only`."""
        return {
            "step": self.step,
            "parameters": [p.detach() for p in self.parameters],
            "moments": [list(self.moments.first), list(self.moments.second), self.moments.count],
            "generator": self.generator.get_state(),
            "history": self.history.to_dict(),
            "judge": None if self.judge is None else self.judge.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        _assign(self.parameters, state["parameters"])
        device = self.parameters[0].device
        first, second = ([t.to(device) for t in moments] for moments in state["moments"][:2])
        self.moments = FastAdamState(tuple(first), tuple(second), state["moments"][2].to(device))
        self.generator.set_state(state["generator"])
        self.step = state["step"]
        for name, value in state["history"].items():
            setattr(self.history, name, value)
        if self.judge is not None:
            self.judge.load_state_dict(state["judge"])


def _gradient(loss: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Zeros where the loss does not depend on a parameter."""
    found = torch.autograd.grad(loss, list(parameters), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


@torch.no_grad()
def _assign(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


class _Judge:
    """Measures the held-out loss and keeps the parameters that had the least."""

    def __init__(self, loss: Callable[[], float], parameters: Sequence[nn.Parameter], history: DescentHistory):
        self.loss, self.parameters, self.history = loss, parameters, history
        self.kept = [p.detach().clone() for p in parameters]
        self.least = math.inf
        self.waited = 0
        """Measurements since the least one."""

    @torch.no_grad()
    def measure(self, step: int) -> None:
        value = self.loss()
        self.history.held_out_steps.append(step)
        self.history.held_out.append(value if math.isfinite(value) else None)
        self.waited += 1
        if value < self.least:  # False for NaN
            self.least, self.waited, self.history.best_step = value, 0, step
            self.kept = [p.detach().clone() for p in self.parameters]

    def state_dict(self) -> dict[str, Any]:
        return {"kept": self.kept, "least": self.least, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        device = self.parameters[0].device
        self.kept = [value.to(device) for value in state["kept"]]
        self.least, self.waited = state["least"], state["waited"]


def num_bytes(tensors: Sequence[Tensor]) -> int:
    """Memory of some tensors."""
    return sum(t.numel() * t.element_size() for t in tensors)
