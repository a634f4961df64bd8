"""The TTT layer: its equation, where its gradients go, and who shares it."""

import pytest
import torch
import torch.nn.functional as F

from selfalign.model.context import EmbodimentContext
from selfalign.model.policy import ACTION, ALIGNMENT, VLA
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


def test_l_ttt_is_summed_once_per_layer(model, batch):
    per_sample = model.losses(batch, parts=(ALIGNMENT,), reduction="none").ttt
    both = model.losses(batch, reduction="none").ttt
    assert per_sample.shape == both.shape == (4,)
    one_layer = randomise(VLA(small_config(ttt=TTTConfig(num_heads=2, head_dim=8, positions=(1,)))))
    assert len(one_layer.ttt_layers) == 1 and one_layer.losses(make_batch(one_layer)).ttt > 0


@pytest.mark.parametrize("positions", [(0, 3), "some"])
def test_positions_outside_of_the_model_are_refused(positions):
    with pytest.raises(ValueError, match="ttt positions must be"):
        VLA(small_config(ttt=TTTConfig(positions=positions)))
