"""Augmentation against openpi's, with the draws that openpi made; and who is drawn for."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from selfalign.model.augment import Augment, AugmentConfig, Draw, draw_changes, move, recolour
from selfalign.model.losses import ACTION
from small_model import make_batch

GOLDENS = Path(__file__).parents[1] / "data" / "openpi_units" / "units.safetensors"


@pytest.fixture(scope="module")
def units() -> dict[str, torch.Tensor]:
    return load_file(GOLDENS)


def test_a_moved_and_recoloured_camera_is_openpis(units):
    top, left, angle, brightness, contrast, saturation = units["augment.base.draws"].unbind(1)
    draw = Draw(top.long(), left.long(), angle * 10 - 5, 0.7 + 0.6 * brightness, 0.6 + 0.8 * contrast, 0.5 + saturation)
    images = recolour(move(units["augment.in"], draw, crop=0.95), draw)
    torch.testing.assert_close(images, units["augment.base"], rtol=0, atol=5e-6)


def test_a_wrist_camera_is_only_recoloured_as_openpis(units):
    brightness, contrast, saturation = units["augment.wrist.draws"].unbind(1)
    nothing = torch.zeros(4)
    draw = Draw(nothing.long(), nothing.long(), nothing, 0.7 + 0.6 * brightness, 0.6 + 0.8 * contrast, 0.5 + saturation)
    torch.testing.assert_close(recolour(units["augment.in"], draw), units["augment.wrist"], rtol=0, atol=5e-6)


def test_draws_are_per_sample_and_within_their_ranges():
    draw = draw_changes(torch.zeros(500, 3, 224, 224), AugmentConfig())
    ranges = {
        "top": (0, 12),
        "left": (0, 12),
        "angle": (-5, 5),
        "brightness": (0.7, 1.3),
        "contrast": (0.6, 1.4),
        "saturation": (0.5, 1.5),
    }
    for name, (low, high) in ranges.items():
        values = getattr(draw, name).float()
        assert low <= values.min() < low + 0.1 * (high - low) and high - 0.1 * (high - low) < values.max() <= high
        assert values.unique().numel() >= 13


def test_each_sample_of_a_batch_is_changed_as_if_it_were_alone(units):
    images, draw = units["augment.in"], draw_changes(units["augment.in"], AugmentConfig())
    together = recolour(move(images, draw, 0.95), draw)
    for i in range(4):
        one = Draw(**{name: value[i : i + 1] for name, value in vars(draw).items()})
        torch.testing.assert_close(recolour(move(images[i : i + 1], one, 0.95), one), together[i : i + 1])


def test_a_wrist_camera_keeps_its_geometry():
    augment, images = Augment().train(), torch.full((8, 3, 40, 40), -1.0)
    images[:, :, :, 20:] = 0.2
    for camera, keeps in (("left_wrist_0_rgb", True), ("base_0_rgb", False)):
        torch.manual_seed(0)
        changed = augment(images, camera)
        straight = (changed[:, :, :, :20].amax((1, 2, 3)) == changed[:, :, :, :20].amin((1, 2, 3))).all()
        assert bool(straight) == keeps


def test_nothing_is_augmented_in_eval():
    images = torch.rand(2, 3, 16, 16)
    assert Augment().eval()(images, "base") is images


def test_a_model_augments_only_where_it_trains(model):
    batch = make_batch(model)
    plain = model.prefix(batch.observation).layers[0].k
    model.augment = Augment()
    assert not any("augment" in name for name in model.state_dict())
    assert torch.equal(model.eval().prefix(batch.observation).layers[0].k, plain)
    assert not torch.equal(model.train().prefix(batch.observation).layers[0].k, plain)
    assert torch.isfinite(model.losses(batch, parts=(ACTION,)).total)
