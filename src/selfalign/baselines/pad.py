"""`pad`: the vision tower learns inverse dynamics on play, after PAD (arXiv 2007.04309).

    L = inverse dynamics(o_t, o_{t+H} -> a_{t:t+H}), with the gradient through the tower's tokens of both moments

What reads them stays as it is: the VLM, the action expert and W0. As in the paper, the head that predicts the actions
(here the alignment expert) may learn with the tower; acting does not use it.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from selfalign.baselines.descent import Descent, descend, num_bytes
from selfalign.baselines.method import Given, Outcome, check_positive
from selfalign.baselines.samples import FlowSamples, Pictures, draw_rows, spread_rows
from selfalign.data.play import Play
from selfalign.model.losses import ALIGNMENT
from selfalign.model.policy import VLA
from selfalign.policy import Policy
from selfalign.train.parts import part_of


@dataclass(frozen=True)
class PadConfig:
    """Adapting the vision tower to play."""

    steps: int = 100
    learning_rate: float = 1e-4
    batch_size: int = 32
    head: bool = True
    """The head learns with the tower, as in the paper."""
    holdout: float = 0.2
    """Share of the trajectories that says when to stop."""
    eval_samples: int = 64
    patience: int | None = 5

    def __post_init__(self) -> None:
        check_positive(self, ("learning_rate", "batch_size", "eval_samples", "holdout"), or_zero=("steps",))
        if self.holdout >= 1:
            raise ValueError(f"PadConfig: holdout must be less than 1, got {self.holdout}")


def pad(given: Given, config: PadConfig) -> Outcome:
    """A copy of the policy whose vision tower was fitted to the body's play."""
    play, policy = given.own_play(), given.copied_policy()
    if policy.model.config.alignment is None:
        raise ValueError("pad needs a model with an alignment expert, which predicts the actions of play")
    train, held = (_pictures(given, part) for part in play.split(config.holdout, given.seed))
    grid_rows = spread_rows(len(held), config.eval_samples)
    grid = FlowSamples.fixed(held.batch(policy, grid_rows), given.seed)
    moved = _trained(policy.model, config)

    def loss_of(generator: torch.Generator) -> Tensor:
        rows = draw_rows(len(train), config.batch_size, generator)
        return inverse_loss(policy, train, rows, FlowSamples.draw(train.batch(policy, rows), generator))

    history = descend(
        list(moved.values()),
        loss_of,
        Descent(config.steps, config.learning_rate, patience=config.patience),
        seed=given.seed,
        held_out=lambda: float(inverse_loss(policy, held, grid_rows, grid)),
        title=f"pad, {given.body}",
        progress=given.progress,
    )
    policy.model.requires_grad_(False)
    stored = [p for name, p in moved.items() if part_of(name) == "vision"]
    return Outcome(policy, given.context_of(policy), history.to_dict(), num_bytes(stored))


def inverse_loss(policy: Policy, pictures: Pictures, rows: Int[Tensor, " B"], samples: FlowSamples) -> Tensor:
    """Inverse dynamics at W0, differentiable in the tower.

    Args:
        rows: of the pictures.
        samples: those transitions with their pixels, at their noise and flow times.
    """
    batch = samples.batch
    if policy.settings.features is None:  # otherwise features that come with the play tell o_{t+H}
        batch = replace(batch, next_features=later_features(policy, pictures, rows))
    losses = policy.model.losses(batch, noise=samples.noise, time=samples.time, parts=(ALIGNMENT,))
    assert losses.inverse is not None  # ALIGNMENT was asked for
    return losses.inverse


def later_features(policy: Policy, pictures: Pictures, rows: Int[Tensor, " B"]) -> Float[Tensor, "B n F"]:
    """`model.next_features` of the next observations, with the gradient to the tower where it is that which tells of
    them."""
    model, seen = policy.model, pictures.images(policy, pictures.later[rows.numpy()])
    return model.next_features(seen if model.config.next_pixels else {c: model.vision(x) for c, x in seen.items()})


def _pictures(given: Given, play: Play) -> Pictures:
    transitions = given.policy.transitions(play, given.stats)
    return Pictures.of(given.policy, play.episodes, transitions)


def _trained(model: VLA, config: PadConfig) -> dict[str, nn.Parameter]:
    """The parameters that learn, by name; the connector to the VLM is part of the encoder."""
    parts = ("vision", "alignment") if config.head else ("vision",)
    chosen = {name: p for name, p in model.named_parameters() if part_of(name) in parts}
    for parameter in chosen.values():
        parameter.requires_grad_(True)
    return chosen
