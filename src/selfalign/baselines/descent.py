"""Gradient descent on some parameters of a model, as every method but `selfalign` uses it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from selfalign.align.optim import FastAdam, grad_norm
from selfalign.align.progress import phases

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
    title: str = "",
    progress: bool = False,
) -> DescentHistory:
    """Moves parameters down a loss, in place.

    With a `held_out` loss, the parameters end where it was least, the start included; without one, after all steps. A
    loss that is not finite ends the descent before it moves anything.
    """
    history = DescentHistory()
    judge = None if held_out is None else _Judge(held_out, parameters, history)
    generator = torch.Generator().manual_seed(seed)
    optimizer = FastAdam(plan.learning_rate, clip_norm=plan.clip_norm)
    state = optimizer.init(tuple(parameters))
    with phases(progress, title) as phase:
        report = phase("fitting", plan.steps)
        if judge is not None:
            judge.measure(0)
        for step in range(1, plan.steps + 1):
            loss = loss_of(generator)
            gradient = _gradient(loss, parameters)
            if not (torch.isfinite(loss) and torch.isfinite(grad_norm(gradient, batched=False))):
                history.stopped = f"the loss was not finite at step {step}; lower the learning rate"
                break
            moved, state = replace(optimizer, lr=plan.rate(step - 1)).step(tuple(parameters), gradient, state)
            _assign(parameters, moved)
            history.train.append(float(loss.detach()))
            report(f"loss {history.train[-1]:.3f}")
            if judge is None:
                history.best_step = step
            elif step % plan.eval_every == 0 or step == plan.steps:
                judge.measure(step)
                if plan.patience is not None and judge.waited >= plan.patience:
                    history.stopped = f"no better held-out loss in {judge.waited} measurements"
                    break
    history.stopped = history.stopped or f"all {plan.steps} steps taken"
    if judge is not None:
        _assign(parameters, judge.kept)
    return history


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


def num_bytes(tensors: Sequence[Tensor]) -> int:
    """Memory of some tensors."""
    return sum(t.numel() * t.element_size() for t in tensors)
