"""Vision towers against things that are known of them."""

import math

import pytest
import torch

from selfalign.model.vision import KeypointTower, KeypointTowerConfig, SigLIPConfig

SIZE = 32


@pytest.fixture
def tower():
    return KeypointTower(KeypointTowerConfig(image_size=SIZE, channels=(8, 16, 16), named=2, free=1, grid=2))


def test_tokens_are_keypoints_then_grid(tower):
    images = torch.rand(3, 3, SIZE, SIZE) * 2 - 1
    tokens = tower(images)
    assert tokens.shape == (3, tower.num_tokens, tower.token_dim) == (3, 3 + 4, 4 + 16)
    pointing = tower.point(tower.maps(images))
    torch.testing.assert_close(tokens[:, :3, :2], pointing.xy)
    torch.testing.assert_close(tokens[0, 3:, :2], torch.tensor([[-0.5, -0.5], [0.5, -0.5], [-0.5, 0.5], [0.5, 0.5]]))
    torch.testing.assert_close(tower.summary(tokens)[:, 0], pointing.xy.flatten(1))
    assert tower.summary_shape == (1, 6)


def test_a_depth_head_gives_named_keypoints_a_third_coordinate():
    sizes = {"image_size": SIZE, "channels": (8, 16, 16), "named": 2, "free": 1, "grid": 2}
    tower = KeypointTower(KeypointTowerConfig(**sizes, depth_width=8))
    images = torch.rand(3, 3, SIZE, SIZE) * 2 - 1
    tower.depth_std.fill_(0.1)
    tokens, pointing = tower(images), tower.point(tower.maps(images))
    assert tokens.shape == (3, tower.num_tokens, tower.token_dim) == (3, 3 + 4, 6 + 16)
    torch.testing.assert_close(tokens[:, :3, 3], pointing.doubt)
    assert tokens[:, :2, 2].all() and not tokens[:, 2:, 2].any()  # neither free keypoints nor grid cells have a depth
    torch.testing.assert_close(tokens[:, 2, :2], pointing.xy[:, 2])
    torch.testing.assert_close(tower.summary(tokens)[:, 0], tokens[:, :3, :3].flatten(1))
    assert tower.summary_shape == (1, 9)
    assert tower.connector(12)(tokens).shape == (3, 7, 12)


def test_places_in_space_are_those_of_a_pinhole_camera():
    tower = KeypointTower(KeypointTowerConfig(channels=(8, 16, 16), named=2, free=0, depth_width=8))
    tower.depth_mean.fill_(math.log(0.8))
    tower.depth_std.fill_(0.1)
    places = torch.tensor([[[0.1, -0.2, 0.9], [-0.05, 0.15, 0.6]]])  # metres to the right, down and away
    depth, half_field = places[..., 2:], 0.414
    in_picture = torch.cat([places[..., :2] / (depth * half_field), (depth / 0.8).log() / 0.1], dim=-1)
    torch.testing.assert_close(tower.depths(in_picture), depth[..., 0])
    expected = (places - torch.tensor([0.0, 0.0, 0.8])) / (0.8 * half_field)
    torch.testing.assert_close(tower.in_space(in_picture), expected)


def test_a_sharp_heat_map_points_at_its_peak(tower):
    maps = torch.zeros(1, 16, 8, 8)
    maps[0, 0, 2, 5] = 1.0  # row 2, column 5 of 8
    with torch.no_grad():
        tower.heat.weight.zero_()
        tower.heat.bias.zero_()
        tower.heat.weight[0, 0] = 100.0
    xy = tower.point(maps).xy[0, 0]
    torch.testing.assert_close(xy, torch.tensor([(5.5 / 8) * 2 - 1, (2.5 / 8) * 2 - 1]))


def test_pixels_of_the_wrong_size_are_refused(tower):
    with pytest.raises(ValueError, match="reads 32x32 pixels, got \\(16, 16\\)"):
        tower(torch.zeros(1, 3, 16, 16))


def test_siglip_sees_patches_and_pools_its_summary():
    torch.manual_seed(0)
    sizes = {"width": 16, "mlp_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8, "image_size": 32}
    tower = SigLIPConfig(**sizes, summary_grid=2).build()
    images = torch.randn(2, 3, 32, 32)
    tokens = tower(images)
    assert tokens.shape == (2, 16, 16)
    expected = tokens.view(2, 4, 4, 16)[:, :2, 2:].mean((1, 2))
    torch.testing.assert_close(tower.summary(tokens)[:, 1], expected)
    # the first patch alone: the convolution is a linear map of its 8 x 8 x 3 numbers
    patch = images[:, :, :8, :8].flatten(1) @ tower.patch_embedding.weight.flatten(1).T + tower.patch_embedding.bias
    torch.testing.assert_close(tower.patch_embedding(images)[:, :, 0, 0], patch, rtol=1e-4, atol=1e-5)
