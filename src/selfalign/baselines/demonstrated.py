"""`lora` and `finetune`: the usual cure. The action loss on a few demonstrations of the body moves the policy.

Both start from the policy at W0 and use no play but for its statistics, and only where play is given.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn

from selfalign.baselines.descent import Descent, DescentHistory, descend, num_bytes
from selfalign.baselines.method import Given, Outcome, check_positive
from selfalign.baselines.samples import FlowSamples, Pictures, demonstrated, draw_rows, read_demonstrations
from selfalign.model.losses import ACTION
from selfalign.model.weights import load_tensors, unique_tensors
from selfalign.policy import Policy
from selfalign.train.lora import LoraSettings, add_lora, merged
from selfalign.train.parts import Part, part_of
from selfalign.types import Transition

Batch = Callable[[Tensor], Transition]
"""The demonstrated transitions of some rows."""


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank updates of the matrices of the VLM and the action expert."""

    rank: int = 8
    alpha: int = 16
    """The updates are scaled by alpha / rank."""
    steps: int = 300
    learning_rate: float = 1e-3
    batch_size: int = 64
    parts: tuple[Part, ...] = ("vlm", "action")
    """Whose matrices are updated (see `train.lora`)."""

    def __post_init__(self) -> None:
        check_positive(self, ("rank", "alpha", "learning_rate", "batch_size"), or_zero=("steps",))
        unknown = sorted({*self.parts} - {*get_args(Part)})
        if unknown or not self.parts:
            raise ValueError(f"LoraConfig: no parts {', '.join(unknown)}; there are: {', '.join(get_args(Part))}")


def lora(given: Given, config: LoraConfig) -> Outcome:
    """A copy of the policy with low-rank updates merged into it."""
    policy = given.copied_policy()
    model = add_lora(policy.model, LoraSettings(config.rank, config.alpha, parts=config.parts))
    moved = [p for p in model.parameters() if p.requires_grad]
    history, stored = _fit_to_demonstrations(given, policy, moved, config)
    result = given.copied_policy()
    with torch.no_grad():
        load_tensors(result.model, merged(model, unique_tensors(model)), "the model with adapters")
    return Outcome(result, given.context_of(result), history.to_dict(), stored)


@dataclass(frozen=True)
class FinetuneConfig:
    """Full fine-tuning: everything that the action loss reaches."""

    steps: int = 300
    learning_rate: float = 1e-4
    batch_size: int = 64
    tower: bool = False
    """The vision tower learns, too: several times as slow."""

    def __post_init__(self) -> None:
        check_positive(self, ("learning_rate", "batch_size"), or_zero=("steps",))


def finetune(given: Given, config: FinetuneConfig) -> Outcome:
    """A copy of the policy all of whose acting weights were trained."""
    policy = given.copied_policy()
    model = policy.model
    moved = [p for name, p in model.named_parameters() if _acts(name, config)]
    for parameter in moved:
        parameter.requires_grad_(True)
    history, stored = _fit_to_demonstrations(given, policy, moved, config, pixels=config.tower)
    model.requires_grad_(False)
    return Outcome(policy, given.context_of(policy), history.to_dict(), stored)


def _acts(name: str, config: FinetuneConfig) -> bool:
    """Whether acting reads a parameter, and it is to learn."""
    if name.startswith("vision."):
        return config.tower
    return part_of(name) != "alignment" and not name.startswith(("grounding.", "contexts."))


def _fit_to_demonstrations(
    given: Given, policy: Policy, moved: list[nn.Parameter], config: Any, *, pixels: bool = False
) -> tuple[DescentHistory, int]:
    """A fixed number of steps: with one demonstration there is none to spare that could say when to stop.

    Returns what happened, and the bytes of the parameters that have changed: the loss does not reach all of them.
    """
    _check_alike(given)
    count, batch_of = _demonstrated(given, policy, pixels)

    def loss_of(generator: torch.Generator) -> Tensor:
        batch = batch_of(draw_rows(count, config.batch_size, generator))
        samples = FlowSamples.draw(batch, generator)
        losses = policy.model.losses(batch, noise=samples.noise, time=samples.time, parts=(ACTION,))
        assert losses.action is not None  # ACTION was asked for
        return losses.action

    plan = Descent(config.steps, config.learning_rate)
    title, before = f"{len(given.demonstrations)} demonstrations, {given.body}", [p.detach().clone() for p in moved]
    history = descend(moved, loss_of, plan, seed=given.seed, title=title, progress=given.progress)
    return history, num_bytes([p for p, was in zip(moved, before, strict=True) if not torch.equal(p, was)])


def _demonstrated(given: Given, policy: Policy, pixels: bool) -> tuple[int, Batch]:
    """How many transitions there are, and what gives some of them: with the tower's tokens, or with pixels."""
    episodes = read_demonstrations(policy, given.demonstrations)
    transitions = demonstrated(policy, episodes, given.stats)
    count = transitions.observation.batch_size
    if not pixels:
        return count, lambda rows: transitions[rows.to(policy.device)]
    pictures = Pictures.of(policy, episodes, transitions)
    return count, lambda rows: pictures.batch(policy, rows)


def _check_alike(given: Given) -> None:
    """Raises `ValueError` where the demonstrations are of another robot than the play."""
    if given.play is None:
        return
    for what in ("state", "action"):
        shown, played = getattr(given.demonstrations[0], what).shape[1], getattr(given.play, f"{what}_dim")
        if shown != played:
            raise ValueError(
                f"the demonstrations have {shown} {what} dimensions, the play has {played}; both must be of one body"
            )
