"""The cached prefix, the joint forward, and the isolation of the streams."""

import pytest
import torch

from selfalign.model import masks
from selfalign.model.losses import ACTION, ALIGNMENT
from selfalign.model.policy import VLA
from selfalign.model.streams import StreamConfig, as_many_heads, attend
from small_model import HEADS, make_batch, randomise, small_config


def suffixes(model, batch):
    time = torch.full((batch.observation.batch_size,), 0.7)
    action = model.time[ACTION](model.action_in(batch.actions.values), time)
    alignment_tokens = torch.randn(len(time), model.layout.length, model.config.alignment.width)
    alignment = model.time[ALIGNMENT](alignment_tokens, time)
    full = torch.ones(model.config.action_horizon, model.config.action_horizon, dtype=torch.bool)
    return {ACTION: (*action, full), ALIGNMENT: (*alignment, model.layout.mask())}


def prefix_tokens(model, observation):
    tokens = model.image_proj(model.vision(observation.images["scene"]))
    words = model.embed_tokens(observation.tokens) * model.config.vlm.width**0.5
    mask = torch.cat([torch.ones(tokens.shape[:2], dtype=torch.bool), observation.token_mask], dim=1)
    return torch.cat([tokens, words], dim=1), mask


@pytest.mark.parametrize("time", ["adarms", "concat"])
def test_cached_prefix_equals_the_joint_forward(time):
    model = randomise(VLA(small_config(time=time)))
    batch = make_batch(model)
    parts = suffixes(model, batch)
    joint = model.mixture.joint(*prefix_tokens(model, batch.observation), parts, model.prior())
    cache = model.prefix(batch.observation)
    for name, (tokens, cond, mask) in parts.items():
        cached = model.mixture.suffix(name, tokens, cond, mask, cache, model.prior()).tokens
        torch.testing.assert_close(cached, joint[name], rtol=1e-4, atol=1e-5)


def test_prefix_does_not_depend_on_the_context(model, batch):
    cache = model.prefix(batch.observation)
    gradients = torch.autograd.grad(
        sum(kv.k.sum() + kv.v.sum() for kv in cache.layers), model.prior().tensors, allow_unused=True
    )
    assert all(g is None for g in gradients)


def test_padding_of_the_prompt_changes_nothing(model, batch):
    sample = batch[:1]
    padded = model.prefix(sample.observation)
    short = sample.observation
    trimmed = type(short)(short.images, short.image_masks, short.state, short.tokens[:, :2], short.token_mask[:, :2])
    noise = torch.randn(1, model.config.action_horizon, model.config.action_dim)
    with_padding = model.sample_actions(sample.observation, noise=noise, prefix=padded)
    without = model.sample_actions(trimmed, noise=noise)
    torch.testing.assert_close(with_padding, without, rtol=1e-4, atol=1e-5)


def test_grouped_heads_equal_attention_written_out():
    q, k, v = torch.randn(2, 5, 4, 8), torch.randn(2, 7, 2, 8), torch.randn(2, 7, 2, 8)
    mask = torch.rand(2, 5, 7) > 0.3
    mask[..., 0] = True
    expected = torch.zeros(2, 5, 4, 8)
    for b in range(2):
        for head in range(4):
            scores = q[b, :, head] @ k[b, :, head // 2].T / 8**0.5
            scores = scores.masked_fill(~mask[b], -torch.inf)
            expected[b, :, head] = scores.softmax(-1) @ v[b, :, head // 2]
    torch.testing.assert_close(attend(q, k, v, mask), expected.flatten(2))


def test_block_mask_is_openpis_example():
    # openpi's docstring of make_attn_mask: [1 0 1 0 1 0 0 1 0 0] has blocks 2, 2, 3, 3
    starts = torch.tensor([1, 0, 1, 0, 1, 0, 0, 1, 0, 0], dtype=torch.bool)
    block = torch.tensor([0, 0, 1, 1, 2, 2, 2, 3, 3, 3])
    assert torch.equal(masks.block_mask(starts), block[None] <= block[:, None])


def test_a_shallower_alignment_expert_reads_the_layers_it_names():
    shallow = StreamConfig(width=16, mlp_dim=32, depth=2, reads=(0, 2), **HEADS)
    model = randomise(VLA(small_config(alignment=shallow)))
    action, alignment = model.mixture.experts[ACTION], model.mixture.experts[ALIGNMENT]
    assert alignment.blocks[1].ttt is action.blocks[2].ttt
    losses = model.losses(make_batch(model))
    assert torch.isfinite(losses.total)


def test_streams_that_cannot_attend_together_are_refused():
    wrong = StreamConfig(width=16, mlp_dim=32, depth=3, num_heads=2, num_kv_heads=2, head_dim=8)
    with pytest.raises(ValueError, match="num_heads=2 but the VLM has 4"):
        VLA(small_config(action=wrong, alignment=wrong))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_repeated_heads_attend_like_grouped_ones(groups):
    """On a CUDA device they are repeated; here both ways run."""
    q, k, v = torch.randn(2, 5, 4, 8), torch.randn(2, 7, groups, 8), torch.randn(2, 7, groups, 8)
    mask = torch.rand(2, 5, 7) < 0.7
    mask[..., 0] = True
    many = [as_many_heads(x.transpose(1, 2), 4) for x in (k, v)]
    repeated = attend(q, *(x.transpose(1, 2) for x in many), mask)
    torch.testing.assert_close(repeated, attend(q, k, v, mask))
    for head in range(4):
        assert torch.equal(many[0][:, head], k[:, :, head * groups // 4])
    assert (many[0].untyped_storage().data_ptr() == k.untyped_storage().data_ptr()) == (groups in (1, 4))
