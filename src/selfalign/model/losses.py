"""The losses of a model: their parts, weights and noise."""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor

from selfalign.types import TensorStruct, Transition

ACTION, ALIGNMENT = "action", "alignment"
BOTH = (ACTION, ALIGNMENT)


@dataclass(frozen=True)
class FlowNoise(TensorStruct):
    """The noise of one training sample. Inverse dynamics reuses the action noise."""

    actions: Float[Tensor, "B H A"]
    state: Float[Tensor, "B S"]
    next_features: Float[Tensor, "B N F"] | None

    @classmethod
    def like(
        cls, batch: Transition, *, samples: int | None = None, generator: torch.Generator | None = None
    ) -> "FlowNoise":
        """Noise for a batch; with `samples`, for so many samples of its kind."""

        def draw(x: Tensor) -> Tensor:
            shape = x.shape if samples is None else (samples, *x.shape[1:])
            return torch.randn(shape, generator=generator, device=x.device, dtype=x.dtype)

        following = None if batch.next_features is None else draw(batch.next_features)
        return cls(draw(batch.actions.values), draw(batch.observation.state), following)


@dataclass(frozen=True)
class LossWeights:
    """Weights of the parts in the total."""

    action: float = 1.0
    ttt: float = 1.0
    perception: float = 1.0
    dynamics: float = 1.0
    inverse: float = 1.0
    grounding: float = 1.0


@dataclass(frozen=True)
class Losses:
    """The total and its parts: scalars, or `[B]` with `reduction="none"`. A part that was not asked for is None."""

    total: Tensor
    action: Tensor | None = None
    ttt: Tensor | None = None
    perception: Tensor | None = None
    dynamics: Tensor | None = None
    inverse: Tensor | None = None
    grounding: Tensor | None = None
    contrastive: Tensor | None = None
    """Of pretraining's slots (`align.contrastive`); the model knows none."""

    def scalars(self) -> dict[str, float]:
        """The parts that are present, as numbers for a log."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: float(value.detach().mean()) for name, value in parts.items() if value is not None}


def masked_mse(predicted: Tensor, target: Tensor, mask: Tensor) -> Float[Tensor, " B"]:
    """Mean squared error of each sample over the elements that the mask counts; 0 where it counts none."""
    mask = mask.to(predicted.dtype).flatten(1)
    error = (predicted - target).square().flatten(1)
    return (error * mask).sum(1) / mask.sum(1).clamp_min(1)
