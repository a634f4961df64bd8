"""One training step, and what an objective must offer."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, get_total_norm

from selfalign.model.losses import Losses
from selfalign.train.autocast import Precision, autocast
from selfalign.train.ema import Ema
from selfalign.train.parallel import Alone, Engine, whole
from selfalign.train.parts import Part, trainable_by_part


class Objective(Protocol):
    """Draws its own batches and gives their losses. It may keep state that a checkpoint must hold."""

    def draw(self, parts: int) -> Sequence[Any]:
        """The batch of the next step, cut into equal parts; a part is something that `losses` takes."""
        ...

    def losses(self, part: Any) -> Losses: ...

    def after_backward(self) -> dict[str, float]:
        """Called when gradients are there and before the optimiser moves; returns numbers for the log."""
        ...

    def diagnose(self) -> dict[str, float]:
        """Numbers for the log that cost a forward and a backward pass; nothing of the training changes by them."""
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
    accumulate: int = 1
    """Parts that a step's batch is cut into and computed one after the other: the same gradients in less memory."""
    ema_decay: float | None = None
    """Keep a moving average of the weights with this decay, and export and validate that; None: none is kept."""
    precision: Precision = "float32"
    """"bf16": large matrix products in bfloat16 (autocast); weights, gradients and moments stay float32."""

    def __post_init__(self) -> None:
        if self.accumulate < 1:
            raise ValueError(f"a batch is cut into at least 1 part, got accumulate={self.accumulate}")
        if not (self.learning_rate > 0 and self.clip_norm > 0):
            found = f"{self.learning_rate} and {self.clip_norm}"
            raise ValueError(f"the learning rate and clip_norm must be above 0, got {found}")
        if self.warmup_steps < 0 or self.weight_decay < 0 or not 0 <= self.final_fraction <= 1:
            raise ValueError(
                "warmup_steps and weight_decay are at least 0 and final_fraction lies between 0 and 1, got "
                f"{self.warmup_steps}, {self.weight_decay} and {self.final_fraction}"
            )

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
    parts: Mapping[Part, Sequence[Tensor]] = field(default_factory=dict)
    """The trainable parameters, by what they belong to."""
    engine: Engine = field(default_factory=Alone)
    ema: Ema | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    """What the training is, as JSON values: its checkpoints say so."""


def make_state(
    model: nn.Module,
    objective: Objective,
    config: OptimConfig,
    total_steps: int,
    engine: Engine | None = None,
    about: Mapping[str, Any] | None = None,
) -> TrainState:
    """A fresh state. Parameters that do not require gradients stay as they are.

    Args:
        engine: runs the model in several processes (`train.parallel`); None: in this one. It must have been made
            before, since FSDP replaces the parameters.
        about: what the training is, for its checkpoints.
    """
    decayed, plain, named = [], [], {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            fast = name.endswith((".W1", ".b1")) or name.startswith("contexts.")
            (decayed if parameter.dim() >= 2 and not fast else plain).append(parameter)
            named[name] = parameter
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)
    return TrainState(
        model,
        objective,
        optimizer,
        config,
        total_steps,
        trainable=decayed + plain,
        parts=trainable_by_part(model),
        engine=Alone() if engine is None else engine,
        ema=None if config.ema_decay is None else Ema(config.ema_decay, named),
        about=about or {},
    )


class NonFiniteLoss(RuntimeError):
    """The loss or its gradient is NaN or infinite; nothing was updated in this step."""

    def __init__(self, message: str, part: Any = None):
        super().__init__(message)
        self.part = part
        """The part of the batch, as the objective has drawn it; None where several may have done it."""


def train_step(state: TrainState) -> dict[str, float]:
    """Losses, gradients, clipping, update. Returns the numbers of the step.

    Raises:
        NonFiniteLoss: before anything is updated.
    """
    config, world = state.config, state.engine.world
    for group in state.optimizer.param_groups:
        group["lr"] = config.rate(state.step, state.total_steps)
    state.optimizer.zero_grad(set_to_none=True)
    numbers: dict[str, float] = defaultdict(float)
    parts = state.objective.draw(config.accumulate)
    for i, part in enumerate(parts):
        with autocast(config.precision, world.device):
            losses = state.engine.losses(state.objective, part, last=i + 1 == len(parts))
        if not world.all(bool(torch.isfinite(losses.total))):
            said = f"step {state.step}: the loss is {float(losses.total.detach())} ({losses.scalars()})"
            raise NonFiniteLoss(said, part)
        (losses.total / len(parts)).backward()
        for name, value in losses.scalars().items():
            numbers[f"loss/{name}"] += value / len(parts)
    numbers |= gradient_norms(state.parts)
    norm = float(whole(clip_grad_norm_(state.trainable, config.clip_norm)))
    if not math.isfinite(norm):
        raise NonFiniteLoss(f"step {state.step}: the gradient's norm is {norm}", parts[0] if len(parts) == 1 else None)
    extra = state.objective.after_backward()
    state.optimizer.step()
    if state.ema is not None:
        state.ema.update()
    state.step += 1
    rate = state.optimizer.param_groups[0]["lr"]
    return {**numbers, **extra, "optim/grad_norm": norm, "optim/learning_rate": rate}


def gradient_norms(parts: Mapping[Part, Sequence[Tensor]]) -> dict[str, float]:
    """The Euclidean norm of each part's gradient, before clipping."""
    found = {part: [p.grad for p in tensors if p.grad is not None] for part, tensors in parts.items()}
    return {f"grad_norm/{part}": float(whole(get_total_norm(grads))) for part, grads in found.items()}
