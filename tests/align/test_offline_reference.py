"""A whole fit against a plain one: no prefixes, no grid, no optimiser of our own."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from align.factory import HORIZON, make_play, small_policy
from selfalign.align.measure import draw_noise
from selfalign.align.offline import AlignConfig, align
from selfalign.data.play import Play
from selfalign.model import flow
from selfalign.model.context import EmbodimentContext
from selfalign.model.losses import FlowNoise, LossWeights
from selfalign.policy import Policy
from selfalign.settings import AlignSettings
from selfalign.types import Transition

SETTINGS = AlignSettings(
    steps=4,
    batch_size=16,
    learning_rate=0.3,
    betas=(0.6, 0.8),
    clip_norm=0.5,
    decay_steps=2.0,
    weights=LossWeights(perception=0.3, dynamics=1.7, inverse=0.6, ttt=0.2),
)
CONFIG = AlignConfig(
    holdout=0.4, eval_every=1, eval_samples=7, eval_times=3, patience=None, min_improvement=0.0, null_draws=3, seed=3
)
"""Nothing in these two is a default."""


def transitions(policy: Policy, play: Play, part: Play) -> Transition:
    """All of a part of play, pixels in."""
    found = policy.transitions(part, play.stats())
    images = np.concatenate([e.images["scene"][: len(e) - HORIZON] for e in part.episodes])
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    observation = dataclasses.replace(found.observation, images={"scene": pixels}, image_features=None)
    return dataclasses.replace(found, observation=observation)


def loss_of(
    policy: Policy, context: EmbodimentContext, batch: Transition, noise: FlowNoise, time: torch.Tensor
) -> torch.Tensor:
    """The weighted sum of the alignment losses, through the whole model."""
    parts = policy.model.losses(batch, context, noise=noise, time=time, parts=("alignment",)).scalars()
    found = policy.model.losses(
        batch, context, noise=noise, time=time, parts=("alignment",), weights=SETTINGS.weights
    ).total
    weights = dataclasses.asdict(SETTINGS.weights)
    assert found.item() == pytest.approx(
        sum(weights[name] * parts[name] for name in parts if name in weights), rel=1e-5
    )
    return found


def held_out_loss(policy: Policy, context: EmbodimentContext, held: Transition) -> float:
    """Seven transitions, evenly spread, each at the middles of three equal shares of the flow times."""
    rows = torch.linspace(0, held.observation.batch_size - 1, 7).round().long()
    times = 0.999 * torch.tensor([1 / 6, 3 / 6, 5 / 6]) ** (1 / 1.5) + 0.001
    batch = held[rows.repeat(3)]
    noise = draw_noise(batch, torch.Generator().manual_seed(3))
    with torch.no_grad():
        return loss_of(policy, context, batch, noise, times.repeat_interleave(7)).item()


def plain_fit(policy: Policy, play: Play) -> tuple[list[float], list[float], list[EmbodimentContext]]:
    """Losses of the batches, held-out losses and contexts, the start first."""
    train, held = (transitions(policy, play, part) for part in play.split(0.4, 3))
    leaf, generator = policy.model.prior().leaf(), torch.Generator().manual_seed(3)
    adam = torch.optim.Adam(leaf.tensors, betas=(0.6, 0.8))
    losses, held_out, contexts = [], [held_out_loss(policy, leaf, held)], [leaf.detach().clone()]
    for step in range(4):
        batch = train[torch.randperm(train.observation.batch_size, generator=generator)[:16]]
        noise, time = draw_noise(batch, generator), flow.sample_time(16, generator=generator)
        total = loss_of(policy, leaf, batch, noise, time)
        adam.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(leaf.tensors, 0.5)
        adam.param_groups[0]["lr"] = 0.3 / math.sqrt(1 + step / 2)
        adam.step()
        losses.append(total.item())
        held_out.append(held_out_loss(policy, leaf, held))
        contexts.append(leaf.detach().clone())
    return losses, held_out, contexts


def null_of(policy: Policy, held: Transition, norm: float) -> float:
    """The mean held-out loss after three updates of that norm in directions that no play has chosen."""
    prior, generator, losses = policy.model.prior(), torch.Generator().manual_seed(4), []
    for _ in range(3):
        noise = [torch.randn(t.shape, generator=generator) for t in prior.tensors]
        size = torch.cat([n.flatten() for n in noise]).norm()
        moved = prior.with_tensors([t.detach() + norm * n / size for t, n in zip(prior.tensors, noise, strict=True)])
        losses.append(held_out_loss(policy, moved, held))
    return sum(losses) / 3


def test_a_whole_fit_is_plain_adam_and_its_verdict_plain_means():
    policy, play = dataclasses.replace(small_policy(), settings=SETTINGS), make_play(8)
    losses, held_out, contexts = plain_fit(policy, play)
    best = min(range(1, 5), key=lambda step: held_out[step])
    assert best < 4, "the best and the last must differ, or it does not matter which is kept"
    norm = contexts[best].distance(contexts[0])

    result = align(policy, play, config=CONFIG, progress=False, snapshots=range(1, 5))
    history, verdict = result.history, result.verdict
    np.testing.assert_allclose(history.train["total"], losses, rtol=1e-4)
    np.testing.assert_allclose(history.held_out["total"], held_out, rtol=1e-4)
    assert history.held_out_steps == (0, 1, 2, 3, 4) and history.best_step == best
    for step, context in result.snapshots.items():
        torch.testing.assert_close(context.tensors, contexts[step].tensors, rtol=0, atol=2e-5)
    torch.testing.assert_close(result.fitted.tensors, contexts[best].tensors, rtol=0, atol=2e-5)
    held = transitions(policy, play, play.split(0.4, 3)[1])
    assert (verdict.before, verdict.after) == (history.held_out["total"][0], history.held_out["total"][best])
    assert verdict.null == pytest.approx(null_of(policy, held, norm), rel=1e-5)  # that of the last differs by 7e-5
