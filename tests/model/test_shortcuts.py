"""What the model leaves out or does once: each shortcut against its plain twin, and that the work is really gone."""

from dataclasses import fields, replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from goldens import OPENPI, OpenPIGolden
from selfalign.model.layers import AdaRMSNorm
from selfalign.model.losses import FlowNoise
from selfalign.model.openpi import load_openpi
from selfalign.model.policy import VLA, Shortcuts
from selfalign.model.vision import SigLIPConfig
from small_model import make_batch, randomise, small_config

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
NAMES = [f.name for f in fields(Shortcuts)]
SIGLIP = SigLIPConfig(width=16, mlp_dim=32, depth=2, num_heads=2, patch_size=8, image_size=16)


@pytest.fixture(params=["adarms", "concat"])
def model(request) -> VLA:
    cameras = ("base", "left", "right")
    return randomise(VLA(small_config(time=request.param, vision=SIGLIP, cameras=cameras)))


@pytest.fixture
def batch(model):
    """Nobody has a left camera, sample 1 has no right one, and the longest prompt is 3 of 5."""
    batch = make_batch(model)
    batch.observation.image_masks["left"][:] = False
    batch.observation.image_masks["right"][1] = False
    batch.observation.token_mask[:, 3:] = False
    return batch


def only(name: str | None) -> Shortcuts:
    return replace(Shortcuts.none(), **({} if name is None else {name: True}))


def outputs(model, batch, shortcuts: Shortcuts):
    model.shortcuts = shortcuts
    model.zero_grad()
    torch.manual_seed(0)
    losses = model.losses(batch, noise=FlowNoise.like(batch), time=torch.full((4,), 0.5), reduction="none")
    losses.total.sum().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    return model.sample_actions(batch.observation, noise=torch.ones(4, 6, 4)), losses.total.detach(), gradients


@pytest.mark.parametrize("name", [*NAMES, "all"])
def test_outputs_and_gradients_equal_the_plain_twins(model, batch, name):
    plain = outputs(model, batch, only(None))
    fast = outputs(model, batch, Shortcuts() if name == "all" else only(name))
    torch.testing.assert_close(fast, plain, **CLOSE)


@pytest.mark.parametrize("name", OPENPI)
@pytest.mark.parametrize("shortcuts", [Shortcuts(), Shortcuts.none()])
def test_openpis_actions_come_out_either_way(name, shortcuts):
    golden = OpenPIGolden.read(name)
    model = load_openpi(golden.directory, **golden.settings)
    model.shortcuts = shortcuts
    actions = model.sample_actions(golden.batch.observation, noise=golden.inputs["sample_noise"])
    torch.testing.assert_close(actions, golden.outputs["sampled_actions"], rtol=0, atol=1e-5)


def flops(model, batch, shortcuts: Shortcuts) -> int:
    model.shortcuts = shortcuts
    with FlopCounterMode(display=False) as counter:
        model.sample_actions(batch.observation, noise=torch.ones(4, 6, 4))
    return counter.get_total_flops()


@pytest.mark.parametrize("name", ["drop_masked_cameras", "trim_prompt", "last_layer_keys_only"])
def test_the_work_is_gone(model, batch, name):
    assert flops(model, batch, only(name)) < flops(model, batch, only(None))


@pytest.mark.parametrize(("shortcuts", "sizes"), [(Shortcuts(), [8]), (only(None), [4, 4, 4])])
def test_masked_cameras_never_enter_the_tower(model, batch, shortcuts, sizes):
    seen = []
    model.vision.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    model.shortcuts = shortcuts
    prefix = model.prefix(batch.observation)
    assert seen == sizes
    patches = 4 * (2 if shortcuts == Shortcuts() else 3)
    assert prefix.mask.shape[1] == patches + (3 if shortcuts == Shortcuts() else 5)


def test_a_camera_that_nobody_has_needs_no_picture(model, batch):
    images = {name: image for name, image in batch.observation.images.items() if name != "left"}
    bare = replace(batch.observation, images=images)
    noise = torch.ones(4, 6, 4)
    expected = model.sample_actions(batch.observation, noise=noise)
    torch.testing.assert_close(model.sample_actions(bare, noise=noise), expected)
    model.shortcuts = Shortcuts.none()
    with pytest.raises(ValueError, match="reads camera 'left'"):
        model.sample_actions(bare, noise=noise)


def test_without_any_camera_the_prompt_is_the_prefix(model, batch):
    for mask in batch.observation.image_masks.values():
        mask[:] = False
    plain = outputs(model, batch, only(None))
    torch.testing.assert_close(outputs(model, batch, Shortcuts()), plain, **CLOSE)
    assert model.prefix(batch.observation).mask.shape[1] == 3


def test_features_and_pixels_mix(model, batch):
    given = model.image_features(batch.observation.images)
    mixed = replace(batch.observation, image_features={"left": given["left"], "base": given["base"]})
    batch.observation.image_masks["left"][:] = True
    expected = model.sample_actions(batch.observation, noise=torch.ones(4, 6, 4))
    torch.testing.assert_close(model.sample_actions(mixed, noise=torch.ones(4, 6, 4)), expected, **CLOSE)


@pytest.mark.parametrize(("ahead", "runs"), [(True, 1), (False, 7)])
def test_a_norm_is_modulated_once_for_all_denoising_steps(ahead, runs):
    model = randomise(VLA(small_config()))
    model.shortcuts = Shortcuts(modulate_ahead=ahead)
    expert = model.mixture.experts["action"]
    norms = [m for m in expert.modules() if isinstance(m, AdaRMSNorm)]
    assert len(norms) == 3 * 3 + 1  # attention, TTT and MLP of three layers, and the last one
    calls = dict.fromkeys(norms, 0)
    for norm in norms:
        norm.modulation.register_forward_pre_hook(lambda *_, norm=norm: calls.update({norm: calls[norm] + 1}))
    model.sample_actions(make_batch(model).observation, num_steps=7)
    assert set(calls.values()) == {runs}


def test_shortcuts_change_neither_config_nor_fingerprint(model):
    before = model.fingerprint()
    model.shortcuts = Shortcuts.none()
    assert model.fingerprint() == before
