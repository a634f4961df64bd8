"""One training step, and what an objective must offer."""

import math
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from selfalign.model.policy import Losses


class Objective(Protocol):
    """Draws its own batch and gives the losses of it. It may keep state that a checkpoint must hold."""

    def losses(self) -> Losses: ...

    def after_backward(self) -> dict[str, float]:
        """Called when gradients are there and before the optimiser moves; returns numbers for the log."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with a linear warm-up and a cosine decay."""

    learning_rate: float = 1e-3
    final_fraction: float = 0.02
    """Learning rate of the last step, relative to the peak."""
    warmup_steps: int = 300
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 1e-2
    """On matrices only; never on the fast weights W0 and their span, whose scale the layer norm ignores."""
    clip_norm: float = 1.0

    def rate(self, step: int, total: int) -> float:
        """The learning rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, total - self.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return self.learning_rate * (self.final_fraction + (1 - self.final_fraction) * cosine)


@dataclass
class TrainState:
    """Everything that a step changes."""

    model: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    config: OptimConfig
    total_steps: int
    step: int = 0
    trainable: list[Tensor] = field(default_factory=list)


def make_state(model: nn.Module, objective: Objective, config: OptimConfig, total_steps: int) -> TrainState:
    """A fresh state. Parameters that do not require gradients stay as they are."""
    decayed, plain = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            fast = name.endswith((".W1", ".b1")) or name.startswith("contexts.")
            (decayed if parameter.dim() >= 2 and not fast else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)
    return TrainState(model, objective, optimizer, config, total_steps, trainable=decayed + plain)


class NonFiniteLoss(RuntimeError):
    """The loss is NaN or infinite; nothing was updated in this step."""


def train_step(state: TrainState) -> dict[str, float]:
    """Losses, gradients, clipping, update. Returns the numbers of the step."""
    for group in state.optimizer.param_groups:
        group["lr"] = state.config.rate(state.step, state.total_steps)
    state.optimizer.zero_grad(set_to_none=True)
    losses = state.objective.losses()
    if not torch.isfinite(losses.total):
        raise NonFiniteLoss(f"step {state.step}: the loss is {float(losses.total.detach())} ({losses.scalars()})")
    losses.total.backward()
    extra = state.objective.after_backward()
    norm = torch.nn.utils.clip_grad_norm_(state.trainable, state.config.clip_norm)
    state.optimizer.step()
    state.step += 1
    return {
        **{f"loss/{name}": value for name, value in losses.scalars().items()},
        **extra,
        "optim/grad_norm": float(norm),
        "optim/learning_rate": state.optimizer.param_groups[0]["lr"],
    }
