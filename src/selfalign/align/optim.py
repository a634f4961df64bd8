"""The optimiser of fast weights, as a pure function: rehearsal in pretraining and alignment afterwards share it.

It is Adam (arXiv 1412.6980) with its state as a value and the step counter and the gradient norm of each slot apart,
so that slots of different ages share a batch, and each moves as it would alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from selfalign.model.contexts import Coordinates


@dataclass(frozen=True)
class FastAdamState:
    """Moments of each tensor of coordinates, and the steps that each slot has taken."""

    first: tuple[Tensor, ...]
    second: tuple[Tensor, ...]
    count: Int[Tensor, "*S"]
    """`[S]` for slots, `[]` for a single context."""

    def reset(self, slots: Bool[Tensor, " S"]) -> Self:
        """A copy in which the chosen slots are as new."""

        def cleared(tensor: Tensor) -> Tensor:
            return torch.where(_per_slot(slots, tensor), torch.zeros_like(tensor), tensor)

        first, second = tuple(map(cleared, self.first)), tuple(map(cleared, self.second))
        return replace(self, first=first, second=second, count=self.count.masked_fill(slots, 0))


@dataclass(frozen=True)
class FastAdam:
    """Adam on a context's coordinates; `step` returns new values and changes nothing in place."""

    lr: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-8
    clip_norm: float | None = None
    """Largest gradient norm of a slot, over all of its tensors; None: no clipping."""
    decay_steps: float | None = None
    """Step t has the rate lr / sqrt(1 + (t - 1) / decay_steps): steps that are as large late as early keep a context
    noisy. None: a constant rate."""

    def __post_init__(self) -> None:
        if not self.lr > 0 or not self.eps > 0 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"Adam needs lr > 0, eps > 0 and betas in [0, 1), got {self}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be positive, or None for no clipping; got {self.clip_norm}")
        if self.decay_steps is not None and not self.decay_steps > 0:
            raise ValueError(f"decay_steps must be positive, or None for a constant rate; got {self.decay_steps}")

    def init(self, coordinates: Coordinates, *, slots: bool = False) -> FastAdamState:
        """The state before the first step; with `slots`, the first axis of every tensor counts slots."""
        zeros = tuple(torch.zeros_like(c).detach() for c in coordinates)
        shape = coordinates[0].shape[:1] if slots else ()
        device = coordinates[0].device if coordinates else None
        return FastAdamState(zeros, zeros, torch.zeros(shape, dtype=torch.long, device=device))

    @torch.no_grad()
    def step(
        self, coordinates: Coordinates, grads: Sequence[Tensor], state: FastAdamState
    ) -> tuple[Coordinates, FastAdamState]:
        """One step down `grads` (in the order of `coordinates`), as `torch.optim.Adam` would take it per slot."""
        beta1, beta2 = self.betas
        scale = self._clip_scale(grads, state.count)
        grads = [g * _per_slot(scale, g) for g in grads]
        first = tuple(torch.lerp(g, m, beta1) for g, m in zip(grads, state.first, strict=True))
        second = tuple(torch.lerp(g * g, v, beta2) for g, v in zip(grads, state.second, strict=True))
        count = state.count + 1
        exponent = count.to(torch.float64)
        size = self._rate(exponent) / (1 - beta1**exponent)
        root = (1 - beta2**exponent).sqrt()
        moved = tuple(
            x.detach() - _per_slot(size, x).to(x.dtype) * m / (v.sqrt() / _per_slot(root, x).to(x.dtype) + self.eps)
            for x, m, v in zip(coordinates, first, second, strict=True)
        )
        return moved, FastAdamState(first, second, count)

    def _rate(self, count: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
        if self.decay_steps is None:
            return torch.full_like(count, self.lr)
        return self.lr / (1 + (count - 1) / self.decay_steps).sqrt()

    def _clip_scale(self, grads: Sequence[Tensor], count: Int[Tensor, "*S"]) -> Float[Tensor, "*S"]:
        """The factor of each slot's gradient, as `torch.nn.utils.clip_grad_norm_` has it."""
        if self.clip_norm is None:
            return torch.ones(count.shape, device=count.device)
        return (self.clip_norm / (grad_norm(grads, batched=count.dim() == 1) + 1e-6)).clamp(max=1.0)


def grad_norm(grads: Sequence[Tensor], *, batched: bool) -> Float[Tensor, "*S"]:
    """Euclidean norm over all tensors: one number, or one per slot."""
    return torch.cat([g.flatten(1 if batched else 0) for g in grads], dim=-1).norm(dim=-1)


def _per_slot(values: Tensor, like: Tensor) -> Tensor:
    """A number per slot, shaped to broadcast over a slot's tensor."""
    return values.reshape(*values.shape, *[1] * (like.dim() - values.dim()))
