"""Losses and sampling of the whole model, against formulas written out."""

import math
from dataclasses import replace

import pytest
import torch

from selfalign.model import flow
from selfalign.model.layers import AdaRMSNorm, apply_rope, rotation, time_embedding
from selfalign.model.losses import ACTION, FlowNoise, LossWeights
from selfalign.model.policy import VLA
from selfalign.types import ActionChunk, Transition
from small_model import make_batch, randomise, small_config


def test_flow_times_follow_the_beta_distribution():
    time = flow.sample_time(200_000, generator=torch.Generator().manual_seed(0))
    assert time.min() >= 0.001 and time.max() <= 1.0
    clean = (time - 0.001) / 0.999
    for t in (0.2, 0.5, 0.8):  # Beta(1.5, 1) has the distribution function t^1.5
        assert abs((clean < t).float().mean() - t**1.5) < 0.005


def test_euler_integrates_a_straight_path_exactly():
    clean, noise = torch.randn(3, 4), torch.randn(3, 4)
    for steps in (1, 7):
        torch.testing.assert_close(flow.integrate(lambda x, t: noise - clean, noise, steps), clean)


def test_euler_has_first_order():
    field = lambda x, t: x * t[:, None]  # noqa: E731  dx/dt = x t: x(0) = x(1) exp(-1/2)
    noise = torch.ones(1, 1, dtype=torch.float64)
    errors = [abs(float(flow.integrate(field, noise, n)) - math.exp(-0.5)) for n in (50, 100)]
    assert 1.8 < errors[0] / errors[1] < 2.2


def test_action_loss_is_the_masked_mean_squared_velocity_error(model, batch):
    step_mask = torch.ones(4, 6, dtype=torch.bool)
    step_mask[1, 4:] = False
    dim_mask = torch.tensor([True, True, True, False]).expand(4, 4)
    chunk = ActionChunk(batch.actions.values, step_mask, dim_mask)
    batch = Transition(batch.observation, chunk, batch.next_features)
    noise, time = FlowNoise.like(batch), torch.tensor([0.1, 0.4, 0.7, 0.9])
    loss = model.losses(batch, noise=noise, time=time, parts=(ACTION,), reduction="none").action
    t = time[:, None, None]
    noisy = t * noise.actions + (1 - t) * chunk.values
    predicted = model.action_velocity(
        batch.observation.state, noisy, time, model.prefix(batch.observation), model.prior()
    )
    error = (predicted - (noise.actions - chunk.values)) ** 2
    expected = [error[i][step_mask[i]][:, :3].mean() for i in range(4)]
    torch.testing.assert_close(loss, torch.stack(expected))


def test_padded_actions_do_not_reach_the_loss(model, batch):
    dim_mask = torch.tensor([True, True, False, False]).expand(4, 4)
    noise = FlowNoise.like(batch)
    values = batch.actions.values.clone().requires_grad_()
    batch = Transition(batch.observation, ActionChunk(values, None, dim_mask), batch.next_features)
    model.losses(batch, noise=noise, time=torch.ones(4), parts=(ACTION,)).total.backward()
    assert values.grad[..., :2].abs().max() > 0  # at t = 1 the target is the only way for actions to enter
    assert values.grad[..., 2:].abs().max() == 0


def test_total_is_the_weighted_sum(model, batch):
    weights = LossWeights(action=2.0, ttt=0.5, perception=3.0, dynamics=0.25, inverse=1.5)
    losses = model.losses(batch, weights=weights)
    expected = sum(getattr(weights, n) * getattr(losses, n) for n in vars(weights) if n != "grounding")
    torch.testing.assert_close(losses.total, expected)


def test_grounding_reads_the_words_of_the_prompt_only():
    model = randomise(VLA(small_config(grounding=True)))
    batch = replace(make_batch(model), referent=torch.rand(4, 2))
    losses = model.losses(batch, parts=(ACTION,), reduction="none")
    hidden = model.prefix(batch.observation, with_hidden=True).hidden
    images = hidden[0].shape[1] - batch.observation.tokens.shape[1]
    expected = torch.zeros(4)
    for i in range(4):
        words = int(batch.observation.token_mask[i].sum())  # the padding behind them must not count
        for head, layer in zip(model.grounding, hidden, strict=True):
            pointed = head(layer[i, images : images + words].mean(0))
            expected[i] += ((pointed - batch.referent[i]) ** 2).sum() / len(hidden)
    torch.testing.assert_close(losses.grounding, expected)
    torch.testing.assert_close(losses.total, losses.action + expected)
    assert model.losses(make_batch(model), parts=(ACTION,)).grounding is None


def test_samples_do_not_depend_on_the_rest_of_the_batch(model, batch):
    noise = torch.randn(4, 6, 4)
    together = model.sample_actions(batch.observation, noise=noise)
    alone = model.sample_actions(batch[2:3].observation, noise=noise[2:3])
    torch.testing.assert_close(together[2:3], alone, rtol=1e-4, atol=1e-5)


def test_state_reaches_actions_but_not_the_prefix(model, batch):
    state = batch.observation.state.clone().requires_grad_()
    observation = type(batch.observation)(
        batch.observation.images,
        batch.observation.image_masks,
        state,
        batch.observation.tokens,
        batch.observation.token_mask,
    )
    cache = model.prefix(observation)
    assert not torch.autograd.grad(cache.layers[-1].k.sum(), state, allow_unused=True, retain_graph=True)[0]
    velocity = model.action_velocity(state, batch.actions.values, torch.full((4,), 0.5), cache, model.prior())
    assert torch.autograd.grad(velocity.sum(), state)[0].abs().max() > 0


def test_missing_camera_is_named(model, batch):
    observation = type(batch.observation)(
        {"wrist": batch.observation.images["scene"]}, batch.observation.image_masks, batch.observation.state,
        batch.observation.tokens, batch.observation.token_mask,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"reads camera 'scene'.*'wrist'"):
        model.sample_actions(observation)


def test_rope_turns_pairs_by_their_angle():
    x = torch.randn(1, 3, 1, 4)
    out = apply_rope(x, rotation(torch.tensor([[0, 1, 5]]), 4))
    torch.testing.assert_close(out[:, 0], x[:, 0])
    for token, position in ((1, 1), (2, 5)):
        for i, frequency in enumerate((1.0, 10_000**-0.5)):
            pair = torch.complex(x[0, token, 0, i], x[0, token, 0, i + 2])
            turned = pair * torch.polar(torch.tensor(1.0), torch.tensor(position * frequency))
            torch.testing.assert_close(out[0, token, 0, i], turned.real)
            torch.testing.assert_close(out[0, token, 0, i + 2], turned.imag)


def test_time_embedding_has_the_periods_of_pi0():
    embedding = time_embedding(torch.tensor([0.25]), 4)[0]
    expected = [math.sin(2 * math.pi * 0.25 / 4e-3), math.sin(2 * math.pi * 0.25 / 4.0)]
    torch.testing.assert_close(embedding[:2], torch.tensor(expected), atol=1e-4, rtol=1e-4)


def test_adarms_scales_shifts_and_gates():
    norm = AdaRMSNorm(4, 3)
    with torch.no_grad():
        norm.modulation.weight.normal_()
    x, cond = torch.randn(2, 5, 4), torch.randn(2, 3)
    out, gate = norm(x, cond)
    scale, shift, expected_gate = norm.modulation(cond).chunk(3, dim=-1)
    unit = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(out, unit * (1 + scale[:, None]) + shift[:, None])
    torch.testing.assert_close(gate[:, 0], expected_gate)
