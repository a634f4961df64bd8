"""The alignment expert's suffix: its layout, its inputs and its heads.

    [perception 1] [dynamics: clean actions H, noisy next N] [inverse dynamics: clean next N, noisy actions H]

Dynamics and inverse dynamics hold each other's labels, so they never see each other, and perception sees the prefix
and itself only: it would carry labels from one to the other in two layers.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


@dataclass(frozen=True)
class AlignmentLayout:
    """Which tokens of the alignment suffix belong to which task. Every range and mask comes from here."""

    horizon: int
    next_tokens: int
    open_perception: bool = False
    """Perception sees both dynamics, which carries labels from one to the other; to compare with."""

    @property
    def perception(self) -> slice:
        return slice(0, 1)

    @property
    def dynamics(self) -> slice:
        return slice(1, 1 + self.horizon + self.next_tokens)

    @property
    def dynamics_actions(self) -> slice:
        return slice(1, 1 + self.horizon)

    @property
    def dynamics_next(self) -> slice:
        return slice(1 + self.horizon, self.dynamics.stop)

    @property
    def inverse(self) -> slice:
        return slice(self.dynamics.stop, self.length)

    @property
    def inverse_next(self) -> slice:
        return slice(self.inverse.start, self.inverse.start + self.next_tokens)

    @property
    def inverse_actions(self) -> slice:
        return slice(self.inverse_next.stop, self.length)

    @property
    def length(self) -> int:
        return 1 + 2 * (self.horizon + self.next_tokens)

    def mask(self, device: torch.device | str | None = None) -> Bool[Tensor, "T T"]:
        """Rows attend to columns: perception to itself, the two dynamics to perception and to their own block."""
        mask = torch.zeros(self.length, self.length, dtype=torch.bool, device=device)
        mask[:, self.perception] = True
        mask[self.perception] = self.open_perception
        for block in (self.perception, self.dynamics, self.inverse):
            mask[block, block] = True
        return mask


@dataclass(frozen=True)
class AlignmentInputs:
    """What the three tasks read: each one's noisy target and its clean evidence."""

    noisy_state: Float[Tensor, "B S"]
    actions: Float[Tensor, "B H A"]
    noisy_next: Float[Tensor, "B N F"]
    next_features: Float[Tensor, "B N F"]
    noisy_actions: Float[Tensor, "B H A"]


@dataclass(frozen=True)
class AlignmentVelocities:
    """Predicted velocities of the three tasks."""

    state: Float[Tensor, "B S"]
    next_features: Float[Tensor, "B N F"]
    actions: Float[Tensor, "B H A"]


class AlignmentSuffix(nn.Module):
    """Embeds the inputs of the three tasks as one suffix, and reads their velocities from the expert's output."""

    def __init__(self, width: int, layout: AlignmentLayout, state_dim: int, action_dim: int, feature_dim: int):
        super().__init__()
        self.layout = layout
        self.state_in = nn.Linear(state_dim, width)
        self.action_in = nn.Linear(action_dim, width)
        self.noisy_next_in = nn.Linear(feature_dim, width)
        self.next_in = nn.Linear(feature_dim, width)
        self.noisy_action_in = nn.Linear(action_dim, width)
        self.perception_head = nn.Linear(width, state_dim)
        self.dynamics_head = nn.Linear(width, feature_dim)
        self.inverse_head = nn.Linear(width, action_dim)

    def embed(self, inputs: AlignmentInputs) -> Float[Tensor, "B T D"]:
        return torch.cat(
            [
                self.state_in(inputs.noisy_state)[:, None],
                self.action_in(inputs.actions),
                self.noisy_next_in(inputs.noisy_next),
                self.next_in(inputs.next_features),
                self.noisy_action_in(inputs.noisy_actions),
            ],
            dim=1,
        )

    def velocities(self, out: Float[Tensor, "B T D"]) -> AlignmentVelocities:
        """Heads on the expert's output.

        Dynamics averages each next-observation token with all action tokens; with one pooled token that is the mean
        over the task's tokens.
        """
        layout = self.layout
        action_sum = out[:, layout.dynamics_actions].sum(1, keepdim=True)
        dynamics = (action_sum + out[:, layout.dynamics_next]) / (layout.horizon + 1)
        return AlignmentVelocities(
            state=self.perception_head(out[:, 0]),
            next_features=self.dynamics_head(dynamics),
            actions=self.inverse_head(out[:, layout.inverse_actions]),
        )
