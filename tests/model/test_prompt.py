"""The latent prompt: tokens that every suffix reads beside the prefix, and nothing else changes."""

from dataclasses import replace

import pytest
import torch

from selfalign.model.layers import apply_rope, rotation
from selfalign.model.losses import ACTION, ALIGNMENT, FlowNoise, LossWeights
from selfalign.model.policy import VLA
from selfalign.model.prefix import KeyValues, LatentPrompt, PrefixCache
from selfalign.model.weights import load_model, save_model
from selfalign.types import Transition
from small_model import make_batch, randomise, small_config

TOKENS = 3


def prompted(seed: int = 0) -> VLA:
    return randomise(VLA(small_config(prompt_tokens=TOKENS)), seed)


def sample(model: VLA, batch: Transition):
    noise = torch.randn(4, 6, 4, generator=torch.Generator().manual_seed(1))
    return model.sample_actions(batch.observation, noise=noise)


def test_without_tokens_there_is_no_prompt():
    assert VLA(small_config()).state_dict().keys() == VLA(small_config(prompt_tokens=0)).state_dict().keys()
    with pytest.raises(ValueError, match="at least 1 token, got -1"):
        VLA(small_config(prompt_tokens=-1))


def test_a_prompt_equals_prefix_tokens_with_the_same_keys_and_values():
    """The twin: prompt tokens that are copies of a prefix's last ones do what those did.

    The copies take no position, so the suffix starts three positions earlier: the twin's keys are turned back by three.
    """
    model = prompted()
    batch = make_batch(model)
    observation = replace(batch.observation, token_mask=torch.ones_like(batch.observation.token_mask))[:1]
    whole, noise = model.prefix(observation), torch.randn(1, 6, 4)
    model.mixture.prompt, prompt = None, model.mixture.prompt
    expected = model.sample_actions(observation, noise=noise, prefix=whole)

    back = rotation(torch.full((1, 1), -TOKENS), model.mixture.head_dim)
    turned = [KeyValues(apply_rope(kv.k, back), kv.v) for kv in whole.layers]
    with torch.no_grad():
        prompt.k.copy_(torch.stack([kv.k[0, -TOKENS:] for kv in turned]))
        prompt.v.copy_(torch.stack([kv.v[0, -TOKENS:] for kv in turned]))
    shorter = PrefixCache(tuple(turned), whole.mask)[:, :-TOKENS]
    model.mixture.prompt = prompt
    actual = model.sample_actions(observation, noise=noise, prefix=shorter)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_the_cached_path_equals_the_joint_forward():
    model = prompted()
    batch = make_batch(model)
    time = torch.full((4,), 0.7)
    action = model.time[ACTION](model.action_in(batch.actions.values), time)
    aligned = model.time[ALIGNMENT](torch.randn(4, model.layout.length, 16), time)
    suffixes = {ACTION: (*action, torch.ones(6, 6, dtype=torch.bool)), ALIGNMENT: (*aligned, model.layout.mask())}
    joint = model.mixture.joint(*model.embed_prefix(batch.observation), suffixes, model.prior())
    cache = model.prefix(batch.observation)
    for name, (tokens, cond, mask) in suffixes.items():
        cached = model.mixture.suffix(name, tokens, cond, mask, cache, model.prior()).tokens
        torch.testing.assert_close(cached, joint[name], rtol=1e-4, atol=1e-5)


def test_the_prefix_does_not_see_the_prompt():
    model = prompted()
    cache = model.prefix(make_batch(model).observation)
    total = sum((kv.k.sum() + kv.v.sum() for kv in cache.layers), start=torch.zeros(()))
    prompt = model.mixture.prompt
    assert isinstance(prompt, LatentPrompt)
    gradients = torch.autograd.grad(total, list(prompt.parameters()), allow_unused=True)
    assert gradients == (None, None)


def test_both_losses_reach_the_prompt_as_finite_differences_say():
    model = prompted().double()
    batch = make_batch(model).map(lambda t: t.double() if t.is_floating_point() else t)
    noise, time = FlowNoise.like(batch), torch.rand(4).double()
    prompt = model.mixture.prompt
    for part in (ACTION, ALIGNMENT):

        def loss(part=part):
            # L_ttt stops gradients on purpose.
            return model.losses(batch, noise=noise, time=time, parts=(part,), weights=LossWeights(ttt=0.0)).total

        for tensor in (prompt.k, prompt.v):
            (gradient,) = torch.autograd.grad(loss(), [tensor])
            direction, step = torch.randn_like(tensor), 1e-3
            with torch.no_grad():
                tensor += step * direction
                above = loss()
                tensor -= 2 * step * direction
                below = loss()
                tensor += step * direction
            # Norms are computed in float32.
            torch.testing.assert_close((gradient * direction).sum(), (above - below) / (2 * step), rtol=1e-2, atol=1e-3)


def test_files_hold_the_prompt(tmp_path):
    model = prompted()
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    assert again.fingerprint() == model.fingerprint()
    assert torch.equal(again.mixture.prompt.k, model.mixture.prompt.k)
    batch = make_batch(model)
    assert torch.equal(sample(again, batch), sample(model, batch))
