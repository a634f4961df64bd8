"""Checkpoints of odd sizes: recognised from their tensors, and equal to pi0 and pi0.5 written out."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from goldens import OPENPI, OpenPIGolden
from plain_pi import velocity
from selfalign import presets
from selfalign.model.openpi import load_openpi, openpi_tensors
from selfalign.model.policy import VLA
from selfalign.model.streams import StreamConfig
from selfalign.model.vision import SigLIPConfig
from small_model import make_batch, randomise

HEADS = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 6}
SIZES = {
    "vlm": StreamConfig(20, 28, depth=4, **HEADS),
    "action": StreamConfig(12, 24, depth=4, **HEADS),
    "vision": SigLIPConfig(width=18, mlp_dim=22, depth=3, num_heads=3, patch_size=7, image_size=21),
    "vocab_size": 37,
    "cameras": ("top", "wrist"),
    "action_horizon": 5,
    "max_token_len": 9,
}
UNKNOWN = {"head_dim": 6, "vision_heads": 3, "action_horizon": 5, "max_token_len": 9, "cameras": ("top", "wrist")}
CONFIGS = {
    "pi0": replace(presets.pi0(), **SIZES, state_dim=7, action_dim=3),
    "pi05": replace(presets.pi05(), **SIZES, state_dim=3, action_dim=3),
}


def sample(batch, i: int, noisy, time) -> dict:
    """Sample i as the reference reads it: only what is valid."""
    observation = batch.observation
    return {
        "images": [image[i] for c, image in observation.images.items() if observation.image_masks[c][i]],
        "words": observation.tokens[i][observation.token_mask[i]],
        "state": observation.state[i],
        "noisy": noisy[i],
        "time": time[i],
    }


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_checkpoint_of_any_size_is_recognised_and_gives_the_velocity(name, tmp_path):
    tensors = openpi_tensors(randomise(VLA(CONFIGS[name])))
    save_file({n: t.contiguous() for n, t in tensors.items()}, tmp_path / "model.safetensors")
    model = load_openpi(tmp_path, **UNKNOWN)
    assert model.config == CONFIGS[name]

    batch, time = make_batch(model, batch=3), torch.tensor([0.05, 0.5, 1.0])
    batch.observation.image_masks["wrist"][1] = False
    batch.observation.image_masks["top"][2] = False
    noisy = torch.randn(3, 5, 3)
    prefix = model.prefix(batch.observation)
    ours = model.action_velocity(batch.observation.state, noisy, time, prefix, None)
    expected = [velocity(tensors, sample(batch, i, noisy, time), head_dim=6, vision_heads=3) for i in range(3)]
    torch.testing.assert_close(ours, torch.stack(expected).float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OPENPI)
def test_the_reference_itself_is_openpis(name):
    """Otherwise the test above would prove little."""
    golden = OpenPIGolden.read(name)
    model = load_openpi(golden.directory, **golden.settings)
    inputs = sample(golden.batch, 1, golden.outputs["x_t"], golden.inputs["time"])
    settings = {key: golden.settings[key] for key in ("head_dim", "vision_heads")}
    expected = velocity(openpi_tensors(model), inputs, **settings)
    torch.testing.assert_close(expected.float(), golden.outputs["v_t"][1], rtol=1e-4, atol=1e-5)
