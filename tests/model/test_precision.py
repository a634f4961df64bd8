"""bf16: which parameters stay float32, and how far actions move."""

from dataclasses import replace

import pytest
import torch

from goldens import OPENPI, OpenPIGolden
from selfalign import presets
from selfalign.model.layers import AdaRMSNorm, RMSNorm, rotation
from selfalign.model.losses import ALIGNMENT
from selfalign.model.openpi import load_openpi
from selfalign.model.policy import VLA
from selfalign.model.precision import set_precision
from selfalign.model.ttt import TTTConfig
from selfalign.model.vision import SigLIPConfig
from small_model import make_batch, randomise, small_config

SIGLIP = SigLIPConfig(width=16, mlp_dim=32, depth=2, num_heads=2, patch_size=8, image_size=16)


@pytest.fixture(params=["adarms", "concat"])
def model(request) -> VLA:
    return randomise(VLA(small_config(time=request.param, vision=SIGLIP)))


def names(model: VLA, dtype: torch.dtype) -> set[str]:
    return {name for name, p in model.named_parameters() if p.dtype == dtype}


def test_every_parameter_has_the_type_that_the_module_says(model):
    set_precision(model, "bf16")
    halves = {
        "embed_tokens.weight", "image_proj.weight", "vision.post_norm.weight",
        "vision.blocks.0.norm1.weight", "vision.blocks.1.q_proj.weight", "vision.blocks.1.fc2.bias",
        "mixture.vlm.blocks.0.q_proj.weight", "mixture.experts.action.blocks.2.mlp.down_proj.weight",
        "mixture.experts.alignment.blocks.1.o_proj.weight", "mixture.experts.action.blocks.0.ttt.theta_q.weight",
    }  # fmt: skip
    wholes = {
        "vision.patch_embedding.weight", "vision.position_embedding", "mixture.vlm.final_norm.weight",
        "state_in.weight", "action_in.weight", "action_out.bias", "time.action.mlp_in.weight",
        "alignment.noisy_next_in.weight", "alignment.inverse_head.weight",
        "mixture.experts.action.blocks.0.ttt.W1", "mixture.experts.action.blocks.0.ttt.b1",
        "mixture.experts.action.blocks.0.ttt.alpha", "mixture.experts.action.blocks.0.ttt.post_norm.weight",
    }  # fmt: skip
    assert halves <= names(model, torch.bfloat16)
    assert wholes <= names(model, torch.float32)
    norms = [m for m in model.modules() if isinstance(m, RMSNorm | AdaRMSNorm)]
    assert norms and all(p.dtype == torch.float32 for norm in norms for p in norm.parameters())


def test_a_keypoint_tower_stays_float32():
    model = set_precision(VLA(small_config()), "bf16")
    assert all(p.dtype == torch.float32 for m in (model.vision, model.image_proj) for p in m.parameters())
    assert torch.isfinite(model.eval().sample_actions(make_batch(model).observation)).all()


def test_nearly_all_of_the_full_size_is_half():
    with torch.device("meta"):
        model = set_precision(VLA(presets.pi05_aligned()), "bf16")
    size = {d: sum(p.numel() for p in model.parameters() if p.dtype == d) for d in (torch.bfloat16, torch.float32)}
    assert size[torch.float32] < 0.1 * size[torch.bfloat16]  # of which nearly all are adaRMS, as in openpi


def test_actions_and_losses_stay_close(model):
    batch, noise = make_batch(model), torch.randn(4, 6, 4)
    expected, context = model.sample_actions(batch.observation, noise=noise), model.prior().clone()
    time = torch.full((4,), 0.5)
    losses = model.losses(batch, context, time=time)
    set_precision(model, "bf16")
    actions = model.sample_actions(batch.observation, context, noise=noise)
    assert actions.dtype == torch.float32
    assert float((actions - expected).norm() / expected.norm()) < 0.02
    torch.manual_seed(0)
    half = model.losses(batch, context, time=time)
    assert half.total.dtype == torch.float32 and torch.isfinite(half.total) and torch.isfinite(losses.total)


@pytest.mark.parametrize("name", OPENPI)
def test_bf16_is_about_as_exact_as_openpis(name):
    golden = OpenPIGolden.read(name)
    model = load_openpi(golden.directory, precision="bf16", **golden.settings)
    actions = model.sample_actions(golden.batch.observation, noise=golden.inputs["sample_noise"])
    exact, theirs = golden.outputs["sampled_actions"], golden.outputs["sampled_actions_bf16"]
    assert (actions - exact).abs().max() < 1.2 * (theirs - exact).abs().max()
    assert (actions - theirs).abs().max() < 2e-2


def test_the_gradient_of_alignment_is_float32_and_close(model):
    batch, time = make_batch(model), torch.full((4,), 0.5)

    def gradients():
        context = model.prior().leaf()
        torch.manual_seed(1)
        total = model.losses(batch, context, time=time, parts=(ALIGNMENT,)).total
        return torch.autograd.grad(total, context.tensors)

    expected = gradients()
    set_precision(model, "bf16")
    for half, whole in zip(gradients(), expected, strict=True):
        assert half.dtype == torch.float32
        assert float((half - whole).norm()) < 0.1 * float(whole.norm())


def test_the_inner_loop_runs_in_bf16():
    config = small_config(ttt=TTTConfig(num_heads=2, head_dim=8, meta_learning=True))
    model = set_precision(randomise(VLA(config)), "bf16")
    assert torch.isfinite(model.losses(make_batch(model)).total)


def test_rotary_angles_are_float32():
    turn = rotation(torch.tensor([[8191]]), 64)
    assert turn.sin.dtype == turn.cos.dtype == torch.float32


def test_float32_comes_back_and_other_precisions_are_refused(model):
    set_precision(set_precision(model, "bf16"), "float32")
    assert not names(model, torch.bfloat16)
    with pytest.raises(ValueError, match="'float32' or 'bf16', got 'fp8'"):
        set_precision(model, "fp8")


def test_precision_is_no_part_of_the_config(model):
    assert replace(model.config) == set_precision(model, "bf16").config
