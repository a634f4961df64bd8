"""Teaching a tower to point, on pictures of a bright square whose place and depth are known."""

import numpy as np
import pytest
import torch

from selfalign.model.vision import KeypointTower, KeypointTowerConfig
from selfalign.train import pointing
from selfalign.train.pointing import PointingConfig, _laplace, colour_jitter, pointing_error, pointing_loss, train_tower

SIZE = 32


def make_tower(depth_width: int = 0, named: int = 2) -> KeypointTower:
    sizes = {"image_size": SIZE, "channels": (8, 16, 16), "named": named, "free": 0, "grid": 1, "feature_dim": 2}
    return KeypointTower(KeypointTowerConfig(**sizes, depth_width=depth_width))


def pictures(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A red and a green square; the nearer, the larger. Returns frames and points (u, v, visible, depth)."""
    rng = np.random.default_rng(seed)
    images = np.full((count, SIZE, SIZE, 3), 40, np.uint8)
    points = np.zeros((count, 2, 4), np.float32)
    for image, labels in zip(images, points, strict=True):
        for channel, label in enumerate(labels):
            half = int(rng.integers(1, 5))
            x, y = rng.integers(half, SIZE - half, 2)
            image[y - half : y + half, x - half : x + half, channel] = 230
            label[:] = x / SIZE, y / SIZE, 1.0, 1.0 / half
    return images, points


def depth_loss(*args) -> float:
    return float(pointing_loss(*args, sigma=0.1)["depth"].detach())


def test_the_loss_is_zero_in_distance_and_depth_where_the_tower_is_right():
    torch.manual_seed(0)
    tower = make_tower(depth_width=8)
    tower.depth_mean.fill_(-0.3)
    tower.depth_std.fill_(0.2)
    images = torch.rand(3, 3, SIZE, SIZE) * 2 - 1
    xyz = tower.point(tower.maps(images)).xyz.detach()
    depth = torch.exp(0.2 * xyz[..., 2:] - 0.3)
    points = torch.cat([xyz[..., :2] / 2 + 0.5, torch.ones(3, 2, 1), depth], dim=-1)
    right = pointing_loss(tower, images, points, sigma=0.1)
    assert right["distance"] < 1e-6 and right["depth"] < 1e-5
    # Everything too far by a factor e^0.03 is wrong by 0.3 tenths; one thing alone also against the other, twice over.
    points[..., 3] *= np.exp(0.03)
    assert depth_loss(tower, images, points) == pytest.approx(0.3, abs=1e-4)
    points[:, 0, 3] /= np.exp(0.03)
    assert depth_loss(tower, images, points) == pytest.approx((0.3 + 2 * 0.3) / 2, abs=1e-4)
    # What is not in view has no part.
    points[:, 1, 2] = 0.0
    assert depth_loss(tower, images, points) < 1e-5


def test_a_tower_learns_where_squares_are_and_how_far():
    torch.manual_seed(0)
    tower, (images, points) = make_tower(depth_width=32), pictures(800)
    train_tower(tower, images, points, PointingConfig(steps=150, batch_size=32, learning_rate=4e-3))
    fresh = pictures(100, seed=1)
    error = pointing_error(tower, *fresh)
    assert max(error["median_error_px"]) < 1.5
    # Never having looked, one is off by the median deviation of the depths: 17 to 33 cm here.
    guess = np.abs(fresh[1][..., 3] - np.median(points[..., 3]))
    assert error["median_depth_error_cm"][0] < 0.5 * 100 * guess.mean()


def test_a_training_that_was_stopped_goes_on_exactly(tmp_path, monkeypatch):
    monkeypatch.setattr(pointing, "SAVE_EVERY", 4)
    (images, points), config, saved = pictures(60), PointingConfig(steps=10, batch_size=8), tmp_path / "saved.pt"

    def fresh():
        torch.manual_seed(0)
        return make_tower(depth_width=8)

    whole = fresh()
    train_tower(whole, images, points, config)

    advance = pointing._Training.advance

    def stop_at(step):
        def advance_or_stop(training, *args):
            if training.step == step:
                raise KeyboardInterrupt
            return advance(training, *args)

        return advance_or_stop

    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patched:
        patched.setattr(pointing._Training, "advance", stop_at(6))
        train_tower(fresh(), images, points, config, saved)
    again = fresh()
    train_tower(again, images, points, config, saved)
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"saved\.pt is of another fit \(.*\"steps\": 10.*remove .* to begin anew"):
        train_tower(fresh(), images, points, PointingConfig(steps=11, batch_size=8), saved)
    with pytest.raises(ValueError, match=r"saved\.pt is of another fit"):
        train_tower(fresh(), images[::-1], points[::-1], config, saved)


def test_errors_are_those_of_the_plain_formula():
    torch.manual_seed(0)
    tower, (images, points) = make_tower(depth_width=8), pictures(40)
    points[::3, 1, 2] = 0.0
    with torch.no_grad():
        xyz = tower.point(tower.maps(torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1)).xyz.numpy()
    seen = points[:, 1, 2] > 0
    pixels = np.hypot(*((xyz[:, 1, :2] + 1) / 2 * SIZE - points[:, 1, :2] * SIZE)[seen].T)
    apart = (np.exp(xyz[:, 1, 2]) - np.exp(xyz[:, 0, 2])) - (points[:, 1, 3] - points[:, 0, 3])
    error = pointing_error(tower, images, points)
    assert error["median_error_px"][1] == pytest.approx(_lower_median(pixels), abs=1e-3)
    assert error["median_depth_error_cm"][1] == pytest.approx(_lower_median(np.abs(100 * apart[seen])), abs=1e-3)


def _lower_median(values: np.ndarray) -> float:
    return float(np.sort(values)[(len(values) - 1) // 2])


def test_points_without_depth_are_refused_by_a_tower_with_a_depth_head():
    images, points = pictures(4)
    with pytest.raises(ValueError, match=r"needs points \(u, v, visible, depth\), got 3 columns"):
        train_tower(make_tower(depth_width=8), images, points[..., :3])


def test_jitter_moves_no_point_and_is_drawn_per_picture():
    images = torch.zeros(4, 3, SIZE, SIZE)
    images[:, :, 8:12, 20:24] = 1.0
    jittered = colour_jitter(images, generator=torch.Generator().manual_seed(0))
    assert jittered.shape == images.shape and jittered.abs().max() <= 1
    inside, outside = jittered[:, :, 8:12, 20:24].mean((1, 2, 3)), jittered[:, :, :8].mean((1, 2, 3))
    assert (inside > outside + 0.3).all()
    assert len(outside.unique()) == 4


def test_doubts_are_learned_as_the_scale_of_errors():
    rng = np.random.default_rng(0)
    errors = torch.from_numpy(rng.laplace(scale=0.7, size=(4000, 2))).abs().float()
    log_scale = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.Adam([log_scale], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        _laplace(errors, log_scale.expand_as(errors), torch.ones_like(errors)).backward()
        optimizer.step()
    np.testing.assert_allclose(log_scale.detach().exp(), 0.7, rtol=0.05)
