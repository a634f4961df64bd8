"""Gradient checkpointing: the same gradients, every block run once more and not twice."""

import pytest
import torch

from selfalign.model.layers import GatedMLP
from selfalign.model.losses import ACTION, ALIGNMENT, FlowNoise
from selfalign.model.policy import VLA
from selfalign.model.ttt import TTTConfig
from selfalign.model.vision import SigLIPConfig
from selfalign.train.lora import LoraSettings, add_lora
from selfalign.train.recompute import blocks, recompute_blocks
from small_model import make_batch, randomise, small_config

SIGLIP = SigLIPConfig(width=16, mlp_dim=32, depth=2, num_heads=2, patch_size=8, image_size=16)


def make_model(**changes) -> VLA:
    return randomise(VLA(small_config(vision=SIGLIP, **changes))).train()


def gradients(model: VLA, batch, noise) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model.losses(batch, noise=noise, time=torch.full((4,), 0.5)).total.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("time", ["adarms", "concat"])
@pytest.mark.parametrize("meta_learning", [False, True])
def test_gradients_are_identical(time, meta_learning):
    model = make_model(time=time, ttt=TTTConfig(num_heads=2, head_dim=8, meta_learning=meta_learning))
    batch = make_batch(model)
    noise = FlowNoise.like(batch)
    plain = gradients(model, batch, noise)
    recomputed = gradients(recompute_blocks(model), batch, noise)
    assert recomputed.keys() == plain.keys()
    assert all(torch.equal(recomputed[name], plain[name]) for name in plain)
    again = gradients(recompute_blocks(model, False), batch, noise)
    assert all(torch.equal(again[name], plain[name]) for name in plain)


def test_adapters_draw_no_random_numbers_either():
    """A dropout would be another one when a block runs again."""
    pytest.importorskip("peft")
    with pytest.raises(TypeError, match="dropout"):
        LoraSettings(rank=2, dropout=0.5)  # pyright: ignore[reportCallIssue]
    model = add_lora(make_model(), LoraSettings(rank=2, parts=("vlm", "action", "alignment"))).train()
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data.normal_(0, 0.3)
    batch = make_batch(model)
    noise, drawn = FlowNoise.like(batch), torch.get_rng_state()
    plain = gradients(model, batch, noise)
    assert torch.equal(torch.get_rng_state(), drawn)
    recomputed = gradients(recompute_blocks(model), batch, noise)
    assert all(torch.equal(recomputed[name], plain[name]) for name in plain)


def count_runs(model: VLA, run) -> dict[torch.nn.Module, int]:
    """How often the MLP of each block runs."""
    runs: dict[torch.nn.Module, int] = {}
    mlps = [m for block in blocks(model) for m in block.modules() if isinstance(m, GatedMLP)]
    mlps += [block.fc1 for block in model.vision.blocks]
    hooks = [m.register_forward_pre_hook(lambda m, _: runs.update({m: runs.get(m, 0) + 1})) for m in mlps]
    run()
    for hook in hooks:
        hook.remove()
    return runs


@pytest.mark.parametrize(("on", "times"), [(False, 1), (True, 2)])
def test_every_block_of_tower_and_streams_is_run_once_more_and_not_twice(on, times):
    model = recompute_blocks(make_model(), on)
    batch = make_batch(model)
    runs = count_runs(model, lambda: model.losses(batch, parts=(ACTION, ALIGNMENT)).total.backward())
    tower, vlm, experts = 2, 3 - 1, 2 * 3  # the last VLM layer gives keys and values only
    assert sorted(runs.values()) == [times] * (tower + vlm + experts)


def test_only_the_inputs_of_the_blocks_are_kept():
    batch, kept = make_batch(make_model(), batch=16, prompt=20), []
    for on in (False, True):
        model, size = recompute_blocks(make_model(), on), 0

        def pack(tensor):
            nonlocal size
            size += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            model.losses(batch)
        kept.append(size)
    assert kept[1] < 0.5 * kept[0]


def test_sampling_recomputes_nothing():
    model = recompute_blocks(make_model())
    observation = make_batch(model).observation
    runs = count_runs(model, lambda: model.sample_actions(observation, num_steps=1))
    assert set(runs.values()) == {1}
