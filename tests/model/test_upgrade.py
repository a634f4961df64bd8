"""A plain policy with an alignment expert and TTT layers added."""

from dataclasses import replace

import pytest
import torch

from goldens import OPENPI, OpenPIGolden
from selfalign import presets
from selfalign.model.losses import ACTION, ALIGNMENT
from selfalign.model.openpi import load_openpi
from selfalign.model.policy import VLA
from selfalign.model.ttt import TTTConfig
from selfalign.model.upgrade import upgrade
from small_model import make_batch


@pytest.fixture(scope="module", params=OPENPI)
def golden(request):
    return OpenPIGolden.read(request.param)


@pytest.fixture(scope="module")
def plain(golden):
    return load_openpi(golden.directory, **golden.settings)


def aligned_config(plain: VLA, *, depth: int = 3, alpha: float = 0.0):
    reads = presets.evenly_spaced(depth, plain.config.vlm.depth)
    expert = replace(plain.config.action, depth=depth, reads=reads)
    return replace(plain.config, alignment=expert, ttt=TTTConfig(2, 8, positions=reads, alpha_init=alpha))


@pytest.mark.parametrize("depth", [3, 2, 1])
@pytest.mark.parametrize("copy_expert", [True, False])
def test_with_alpha_0_actions_are_the_plain_policys_bit_for_bit(golden, plain, depth, copy_expert):
    model = upgrade(plain, aligned_config(plain, depth=depth), copy_expert=copy_expert)
    observation, noise = golden.batch.observation, golden.inputs["sample_noise"]
    expected = plain.sample_actions(observation, noise=noise, num_steps=3)
    random_context = model.prior().perturbed(10.0)  # absent TTT layers read no context
    assert torch.equal(model.sample_actions(observation, noise=noise, num_steps=3), expected)
    assert torch.equal(model.sample_actions(observation, random_context, noise=noise, num_steps=3), expected)


def test_with_open_layers_the_context_moves_actions(golden, plain):
    model = upgrade(plain, aligned_config(plain, alpha=0.1))
    observation, noise = golden.batch.observation, golden.inputs["sample_noise"]
    actions = [
        model.sample_actions(observation, c, noise=noise, num_steps=3) for c in (None, model.prior().perturbed(10.0))
    ]
    assert not torch.equal(*actions)


def test_the_alignment_expert_is_a_copy_of_the_action_experts_layers(plain):
    model = upgrade(plain, aligned_config(plain, depth=2))
    action, alignment = model.mixture.experts[ACTION], model.mixture.experts[ALIGNMENT]
    assert model.config.alignment.reads == (0, 2)
    for ours, source in ((0, 0), (1, 2)):
        for name, parameter in alignment.blocks[ours].named_parameters():
            assert torch.equal(parameter, action.blocks[source].get_parameter(name)), name
        assert alignment.blocks[ours].mlp.up_proj.weight is not action.blocks[source].mlp.up_proj.weight
        assert alignment.blocks[ours].ttt is action.blocks[source].ttt is not None
    for name, parameter in model.time[ALIGNMENT].named_parameters():
        assert torch.equal(parameter, model.time[ACTION].get_parameter(name)), name


def test_an_upgraded_policy_has_all_losses_and_gradients_of_its_context(plain):
    model = upgrade(plain, aligned_config(plain, alpha=0.1))
    context = model.prior().leaf()
    losses = model.losses(make_batch(model, batch=1), context)
    assert all(torch.isfinite(torch.tensor(v)) for v in losses.scalars().values())
    assert all(g.abs().max() > 0 for g in torch.autograd.grad(losses.total, context.tensors))


def test_what_does_not_fit_is_refused(plain):
    config = aligned_config(plain)
    with pytest.raises(ValueError, match=r"the plain policy does not fit the upgraded one:\n  shape of action_in"):
        upgrade(plain, replace(config, action_dim=7))
    with pytest.raises(ValueError, match="no alignment expert"):
        upgrade(plain, plain.config)
