"""Typed samples and the conventions that every module shares.

**Flow time.** `t` in [0, 1]; `x_t = t * noise + (1 - t) * x` and the velocity is `u = noise - x`, so t = 1 is pure
noise and a sampler integrates from t = 1 down to t = 0 (the convention of openpi's pi0, arXiv 2410.24164 with time
reversed). Training draws `t ~ 0.999 * Beta(1.5, 1) + 0.001`.

**Axes.** B batch, T tokens, H action horizon, A action_dim, S state_dim, N next-observation tokens, F features of each,
L prompt length. Robots with fewer dimensions than the model are padded at the end and carry a mask.

**Units.** The model sees normalised numbers only; robot units live outside of it (`selfalign.Policy`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def _map_tensors(value: Any, fn) -> Any:
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, Mapping):
        return {key: _map_tensors(item, fn) for key, item in value.items()}
    if isinstance(value, TensorStruct):
        return value.map(fn)
    return value


class TensorStruct:
    """Base of the frozen sample types: `map`, `to` and indexing over every tensor that a sample holds."""

    def map(self, fn) -> Self:
        """A copy with `fn` applied to each tensor."""
        return replace(self, **{f.name: _map_tensors(getattr(self, f.name), fn) for f in fields(self)})  # type: ignore[type-var]

    def to(self, device: torch.device | str) -> Self:
        """A copy on `device`."""
        return self.map(lambda tensor: tensor.to(device))

    def __getitem__(self, index) -> Self:
        """A copy with the batch axis of each tensor indexed."""
        return self.map(lambda tensor: tensor[index])


@dataclass(frozen=True)
class Observation(TensorStruct):
    """What the policy sees at one moment, normalised and padded.

    A camera is given as pixels (`images`), or as the frozen vision tower's output (`image_features`) where that has
    been computed before; a camera in both is read from `image_features`.
    """

    images: Mapping[str, Float[Tensor, "B 3 height width"]]
    """Per camera, in [-1, 1]."""
    image_masks: Mapping[str, Bool[Tensor, " B"]]
    """Per camera: False where this sample has no such camera."""
    state: Float[Tensor, "B S"]
    """Normalised proprioception."""
    tokens: Int[Tensor, "B L"]
    """Prompt tokens, padded on the right."""
    token_mask: Bool[Tensor, "B L"]
    state_mask: Bool[Tensor, "B S"] | None = None
    """False on padded state dimensions; None: all are real."""
    image_features: Mapping[str, Float[Tensor, "B N D"]] | None = None

    @property
    def batch_size(self) -> int:
        return self.state.shape[0]

    def trimmed(self) -> Self:
        """Without the prompt's last columns that no sample of the batch uses. The mask is read on the host."""
        used = self.token_mask.any(0).nonzero()
        length = int(used.max()) + 1 if len(used) else 0
        return replace(self, tokens=self.tokens[:, :length], token_mask=self.token_mask[:, :length])


@dataclass(frozen=True)
class ActionChunk(TensorStruct):
    """H consecutive actions that start at the observation."""

    values: Float[Tensor, "B H A"]
    step_mask: Bool[Tensor, "B H"] | None = None
    """False on steps beyond the episode's end (LeRobot's `action_is_pad`, negated); None: all are real."""
    dim_mask: Bool[Tensor, "B A"] | None = None
    """False on padded action dimensions; None: all are real."""

    def loss_mask(self) -> Float[Tensor, "B H A"]:
        """1 where an element counts in a loss."""
        mask = torch.ones_like(self.values)
        if self.step_mask is not None:
            mask = mask * self.step_mask[:, :, None]
        if self.dim_mask is not None:
            mask = mask * self.dim_mask[:, None, :]
        return mask


@dataclass(frozen=True)
class Transition(TensorStruct):
    """(o_t, a_{t:t+H}, o_{t+H}): one sample of play, or of a demonstration."""

    observation: Observation
    actions: ActionChunk
    next_features: Float[Tensor, "B N F"] | None = None
    """Normalised features of the observation after the chunk; None where only the action loss is wanted."""
    next_mask: Bool[Tensor, " B"] | None = None
    """False where the episode ends before o_{t+H}; None: all are real."""
    referent: Float[Tensor, "B 2"] | None = None
    """Where in the image the thing is that the instruction names, x and y in [-1, 1]; None: not known."""
