"""The TTT layer: its equation, where its gradients go, and who shares it."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from selfalign.model import masks
from selfalign.model.context import EmbodimentContext
from selfalign.model.inner_loop import FastWeights, Norm, inner_loop, primal_step
from selfalign.model.losses import ACTION, ALIGNMENT, FlowNoise
from selfalign.model.policy import VLA
from selfalign.model.ttt import TTTConfig, TTTLayer
from small_model import make_batch, randomise, small_config


@pytest.fixture
def layer():
    torch.manual_seed(1)
    layer = TTTLayer(16, TTTConfig(num_heads=2, head_dim=8), cond_dim=None)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return layer


def test_the_layer_is_its_equation(layer):
    x = torch.randn(3, 5, 16)
    out, loss = layer(x, None, layer.W1, layer.b1, with_loss=True)
    normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (1 + layer.norm.weight)
    q, k, v = (normed @ w.weight.T for w in (layer.theta_q, layer.theta_k, layer.theta_v))
    inner, errors = [], []
    for head in range(2):
        columns = slice(8 * head, 8 * head + 8)

        def z(y, head=head):
            y = y @ layer.W1[head] + layer.b1[head]
            y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()
            return y * layer.ttt_norm_weight[head] + layer.ttt_norm_bias[head]

        inner.append(q[..., columns] + z(q[..., columns]))
        errors.append((z(k[..., columns]) - (v - k)[..., columns]) ** 2)
    normed_inner = F.layer_norm(torch.cat(inner, -1), (16,), layer.post_norm.weight, layer.post_norm.bias, 1e-6)
    torch.testing.assert_close(out, x + layer.alpha.tanh() * (normed_inner @ layer.theta_o.weight.T))
    torch.testing.assert_close(loss, torch.cat(errors, -1).mean((1, 2)))


def test_the_reconstruction_loss_moves_fast_weights_only(layer):
    _, loss = layer(torch.randn(3, 5, 16), None, layer.W1, layer.b1, with_loss=True)
    loss.sum().backward()
    moved = {name for name, p in layer.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert moved == {"W1", "b1"}


def test_alpha_zero_makes_the_layer_absent(layer):
    torch.nn.init.zeros_(layer.alpha)
    x = torch.randn(3, 5, 16)
    assert torch.equal(layer(x, None, layer.W1, layer.b1)[0], x)


def test_the_scale_of_w_is_a_null_direction_without_bias(layer):
    """Why there is no weight decay on W."""
    x, b1 = torch.randn(3, 5, 16), torch.zeros_like(layer.b1)
    a, _ = layer(x, None, 20 * layer.W1, b1)
    b, _ = layer(x, None, 60 * layer.W1, b1)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_both_experts_share_one_object_and_it_is_counted_once(model):
    action, alignment = model.mixture.experts[ACTION], model.mixture.experts[ALIGNMENT]
    for a, b in zip(action.blocks, alignment.blocks, strict=True):
        assert a.ttt is b.ttt
    names = [name for name, _ in model.named_parameters() if name.endswith(".W1")]
    assert len(names) == len(model.ttt_layers) == 3


def test_one_context_per_sample_equals_one_by_one(model, batch):
    contexts = [model.prior().perturbed(3.0, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    noise = torch.randn(4, model.config.action_horizon, model.config.action_dim)
    together = model.sample_actions(batch.observation, EmbodimentContext.stack(contexts), noise=noise)
    for i, context in enumerate(contexts):
        alone = model.sample_actions(batch[i : i + 1].observation, context, noise=noise[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-5)
    other = model.sample_actions(batch.observation, contexts[0], noise=noise)
    assert (together[1] - other[1]).abs().max() > 1e-3, "the context is read"


def test_a_forward_leaves_w_unchanged(model, batch):
    before = model.prior().clone()
    model.losses(batch)
    assert all(torch.equal(a, b) for a, b in zip(before.tensors, model.prior().tensors, strict=True))


def test_a_detached_context_gets_no_gradient_from_the_action_loss(model, batch):
    context = model.prior().leaf()
    model.losses(batch, context.detach(), parts=(ACTION,)).total.backward()
    assert all(t.grad is None for t in context.tensors)
    model.losses(batch, context, parts=(ACTION,)).total.backward()
    assert all(t.grad.abs().max() > 0 for t in context.tensors)


def test_l_ttt_is_summed_once_per_layer_however_many_experts_run_it(model, batch):
    given = {"noise": FlowNoise.like(batch), "time": torch.full((4,), 0.5), "reduction": "none"}
    alone = model.losses(batch, parts=(ALIGNMENT,), **given).ttt
    told = []
    for layer in model.ttt_layers:
        layer.register_forward_hook(lambda _, args, out: told.append(out[1]))
    both = model.losses(batch, **given).ttt
    counted = [loss for loss in told if loss is not None]
    assert len(told) == 2 * 3 and len(counted) == 3
    torch.testing.assert_close(both, sum(counted))
    torch.testing.assert_close(both, alone)


def test_in_the_whole_model_l_ttt_moves_fast_weights_only(model, batch):
    model.losses(batch, parts=(ALIGNMENT,)).ttt.backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert len(moved) == 2 * 3 and all(name.endswith((".ttt.W1", ".ttt.b1")) for name in moved)


@pytest.mark.parametrize("positions", [(0, 3), "some"])
def test_positions_outside_of_the_model_are_refused(positions):
    with pytest.raises(ValueError, match="ttt positions must be"):
        VLA(small_config(ttt=TTTConfig(positions=positions)))


# ---- the inner loop ------------------------------------------------------------------------------------------------


META = TTTConfig(num_heads=2, head_dim=8, meta_learning=True, mini_batch=3)


@pytest.fixture
def learner():
    """A model whose TTT layers learn within the forward."""
    return randomise(VLA(small_config(ttt=META)))


def test_without_the_inner_loop_there_is_nothing_of_it(model):
    assert not any(".inner." in name for name in model.state_dict())


@pytest.mark.parametrize("base", [1.0, 3.0])
def test_the_layer_runs_the_inner_loop_from_the_given_context(base):
    layer = TTTLayer(16, replace(META, base_rate=base), cond_dim=None)
    randomise(layer)
    x = torch.randn(3, 7, 16)
    W1, b1 = 0.3 * torch.randn(3, 2, 8, 8), 0.3 * torch.randn(3, 2, 1, 8)
    out, _ = layer(x, None, W1, b1)
    normed, _ = layer.norm(x)
    q, k, v = (theta(normed).unflatten(-1, (2, 8)) for theta in (layer.theta_q, layer.theta_k, layer.theta_v))
    rate = base * layer.inner.rate(normed).sigmoid() / 8
    scale = (1 / torch.arange(1, 4) + layer.inner.scale_offset).clamp_min(0)
    norm = Norm(layer.ttt_norm_weight, layer.ttt_norm_bias)
    _, read = inner_loop(FastWeights(W1, b1), q, k, v, rate, scale, norm, step=primal_step)
    branch = layer.theta_o(layer.post_norm(read.flatten(2)))
    torch.testing.assert_close(out, x + layer.alpha.tanh() * branch, rtol=1e-5, atol=1e-5)


def test_with_learning_rates_of_zero_the_loop_reads_w_as_it_is(layer):
    silent = TTTLayer(16, META, cond_dim=None)
    silent.load_state_dict(layer.state_dict(), strict=False)
    torch.nn.init.zeros_(silent.inner.rate.weight)
    torch.nn.init.constant_(silent.inner.rate.bias, -1e4)
    x = torch.randn(3, 5, 16)
    torch.testing.assert_close(silent(x, None, layer.W1, layer.b1)[0], layer(x, None, layer.W1, layer.b1)[0])


def test_the_inner_loop_learns_per_sample_and_leaves_w_unchanged(learner):
    batch, before = make_batch(learner), learner.prior().clone()
    contexts = [learner.prior().perturbed(1.0, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    noise = torch.randn(4, learner.config.action_horizon, learner.config.action_dim)
    stacked = EmbodimentContext.stack(contexts)
    given = [t.clone() for t in stacked.tensors]
    together = learner.sample_actions(batch.observation, stacked, noise=noise)
    learner.losses(batch)
    assert all(torch.equal(a, b) for a, b in zip(before.tensors, learner.prior().tensors, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(given, stacked.tensors, strict=True))
    for i, context in enumerate(contexts):
        alone = learner.sample_actions(batch[i : i + 1].observation, context, noise=noise[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-4)


def test_gradients_go_through_the_loop(learner):
    learner.losses(make_batch(learner), parts=(ACTION,)).total.backward()
    for layer in learner.ttt_layers:
        for parameter in (layer.theta_k.weight, layer.theta_v.weight, layer.inner.rate.weight, layer.W1, layer.b1):
            assert parameter.grad is not None and parameter.grad.abs().max() > 0
        assert layer.inner.scale_offset.grad.abs().max() > 0


@pytest.mark.parametrize("causal", [True, False])
def test_the_loop_carries_no_label_across_the_mask(causal):
    """What a token's output depends on is what attention lets it see."""
    layer = TTTLayer(16, TTTConfig(num_heads=2, head_dim=8, meta_learning=True, mini_batch=2, causal=causal), None)
    randomise(layer)
    starts = torch.tensor([True, True, False, False, True, False])
    tasks = torch.block_diag(torch.ones(1, 1), torch.ones(3, 3), torch.ones(2, 2)).bool()
    tasks[1:, 0] = True  # as perception in the alignment suffix: seen by all, sees itself
    for mask in (masks.block_mask(starts), tasks):
        x = torch.randn(2, 6, 16, requires_grad=True)
        out, _ = layer(x, None, layer.W1, layer.b1, mask)
        rows = [torch.autograd.grad(out[:, i].sin().sum(), x, retain_graph=True)[0] for i in range(6)]
        depends = torch.stack([row.abs().amax((0, 2)) > 0 for row in rows])
        allowed = mask & torch.ones(6, 6).tril().bool() if causal else mask
        assert not (depends & ~allowed).any()
        assert depends[3, 0] and depends[3, 1] and depends[5, 4]


def test_alignment_tasks_do_not_leak_through_the_loop(learner):
    """The dynamics prediction must not depend on the clean next observation, nor the inverse one on clean actions."""
    batch = make_batch(learner)
    layout, width = learner.layout, learner.config.alignment.width
    tokens = torch.randn(2, layout.mask().shape[0], width, requires_grad=True)
    cond = torch.randn(2, width)
    cache = learner.prefix(batch[:2].observation)
    out = learner.mixture.suffix(ALIGNMENT, tokens, cond, layout.mask(), cache, learner.prior()).tokens

    def reaches(target: slice, source: slice) -> bool:
        return bool(torch.autograd.grad(out[:, target].sin().sum(), tokens, retain_graph=True)[0][:, source].any())

    for target in (layout.perception, layout.dynamics, layout.inverse):
        assert reaches(target, target)
    assert not reaches(layout.dynamics, layout.inverse) and not reaches(layout.inverse, layout.dynamics)
    assert not reaches(layout.perception, layout.dynamics) and not reaches(layout.perception, layout.inverse)


def test_cached_and_joint_passes_agree_with_the_inner_loop(learner):
    mixture = learner.mixture
    mask = masks.block_mask(torch.tensor([True, True, False, False]))
    prefix, valid = torch.randn(2, 5, 24), torch.ones(2, 5, dtype=torch.bool)
    tokens, cond = torch.randn(2, 4, 16), torch.randn(2, 16)
    cached = mixture.suffix(ACTION, tokens, cond, mask, mixture.prefix(prefix, valid), learner.prior()).tokens
    joint = mixture.joint(prefix, valid, {ACTION: (tokens, cond, mask)}, learner.prior())[ACTION]
    torch.testing.assert_close(cached, joint, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("change", [{"mini_batch": 0}, {"base_rate": 0.0}])
def test_impossible_inner_loops_are_refused(change):
    with pytest.raises(ValueError, match="mini_batch >= 1 and base_rate > 0"):
        TTTConfig(**change)
