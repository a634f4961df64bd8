"""`prompt`: a latent prompt is fitted to play with the alignment losses, after TTT-VLA (arXiv 2606.03127).

The prompt is keys and values that both experts read beside the prefix (`LatentPrompt`); W stays W0. A model that was
pretrained with a prompt (`VLAConfig.prompt_tokens`) starts from its own, any other one from a fresh one.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from selfalign.align.bank import PlayBank
from selfalign.align.measure import EvalGrid
from selfalign.baselines.descent import Descent, descend, num_bytes
from selfalign.baselines.method import Given, Outcome, check_positive
from selfalign.baselines.samples import FlowSamples, draw_rows
from selfalign.model.losses import ALIGNMENT, LossWeights
from selfalign.model.policy import VLA
from selfalign.policy import Policy


@dataclass(frozen=True)
class PromptConfig:
    """Fitting a latent prompt to play."""

    tokens: int = 8
    """Of a fresh prompt; 0: none, which is the frozen policy."""
    steps: int = 100
    learning_rate: float = 1e-2
    batch_size: int | None = None
    """None: as the checkpoint aligns."""
    holdout: float = 0.2
    """Share of the trajectories that says when to stop."""
    patience: int | None = 5

    def __post_init__(self) -> None:
        check_positive(self, ("learning_rate", "holdout"), or_zero=("steps", "tokens"))
        if self.holdout >= 1:
            raise ValueError(f"PromptConfig: holdout must be less than 1, got {self.holdout}")


def prompt(given: Given, config: PromptConfig) -> Outcome:
    """A copy of the policy with a prompt that was fitted to the body's play."""
    play, settings = given.own_play(), given.policy.settings
    policy = with_prompt(given.copied_policy(), config.tokens, given.seed)
    own = policy.model.mixture.prompt
    if own is None:
        return Outcome(given.policy, given.context_of(given.policy), {}, 0)
    # The prefix does not see the prompt: it is computed once, as for aligning.
    train, held = (PlayBank.build(policy, part, given.stats) for part in play.split(config.holdout, given.seed))
    grid = EvalGrid.build(held, seed=given.seed)
    prior = policy.model.prior().detach()

    def loss_of(generator: torch.Generator) -> Tensor:
        rows = draw_rows(len(train), config.batch_size or settings.batch_size, generator)
        return alignment_loss(policy.model, train, rows, generator, settings.weights)

    history = descend(
        list(own.requires_grad_(True).parameters()),
        loss_of,
        Descent(config.steps, config.learning_rate, patience=config.patience),
        seed=given.seed,
        held_out=lambda: grid.losses(policy.model, prior, settings.weights).total,
        title=f"prompt, {given.body}",
        progress=given.progress,
    )
    own.requires_grad_(False)
    return Outcome(policy, given.context_of(policy), history.to_dict(), num_bytes(list(own.parameters())))


def alignment_loss(
    model: VLA, bank: PlayBank, rows: Tensor, generator: torch.Generator, weights: LossWeights
) -> Tensor:
    """The total that aligning minimises, at W0."""
    batch, prefix = bank.batch(rows)
    samples = FlowSamples.draw(batch, generator)
    losses = model.losses(
        batch, noise=samples.noise, time=samples.time, prefix=prefix, parts=(ALIGNMENT,), weights=weights
    )
    return losses.total


def with_prompt(policy: Policy, tokens: int, seed: int = 0) -> Policy:
    """The policy with a fresh prompt of so many tokens in its model, which is changed; its own prompt is kept."""
    model = policy.model
    if tokens == 0 or model.mixture.prompt is not None:
        return policy
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.mixture.add_prompt(tokens).to(policy.device)
    model.config = replace(model.config, prompt_tokens=tokens)
    return replace(policy, model=model)
