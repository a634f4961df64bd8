"""Features of live play are those that `selfalign features` would have stored of it (its extractor is made up here)."""

import numpy as np
import pytest

from selfalign.bench import live_features
from selfalign.bench.live_features import LiveFeatures
from selfalign.data.extractors import Projection
from selfalign.data.feature_writer import write_features
from selfalign.data.lerobot import LeRobotWriter
from selfalign.data.play import Play
from selfalign.data.sources import SourceData

RNG = np.random.default_rng(0)
PROJECTION = Projection.fit(RNG.normal(size=(50, 12)), 5)


class Parts:
    """In place of a vision transformer: the means of four parts of a picture, as one token."""

    def __init__(self, name, weights, *, grid, image_size):
        self.digest = f"{name}-{image_size}-{grid}-{weights}"

    def __call__(self, frames):
        size = frames.shape[1] // 2
        return frames.reshape(len(frames), 1, 2, size, 2, size, 3).mean(axis=(3, 5)).reshape(len(frames), 1, 12)


@pytest.fixture
def stored(tmp_path, monkeypatch):
    from align.factory import make_episode

    monkeypatch.setattr(live_features, "TimmFeatures", Parts)
    with LeRobotWriter(tmp_path / "data", embodiments=[{"name": "a"}]) as writer:
        for seed in range(2):
            writer.add_episode(make_episode(seed, length=9))
    extractor = Parts("vit_small.dino-v2", "0123456789ab", grid=1, image_size=28)
    name = f"{extractor.digest}-{PROJECTION.digest}"
    source = SourceData.open(tmp_path / "data")
    return write_features(source, ("scene",), extractor, PROJECTION, name, tmp_path / "features")


def test_live_features_are_those_that_are_stored(stored, tmp_path):
    live = LiveFeatures.like(stored.root, "0123456789ab").attach(Play.open(tmp_path / "data"))
    kept = Play.open(tmp_path / "data", features=stored.root)
    assert live.features == kept.features == stored.name
    for ours, theirs in zip(live.episodes, kept.episodes, strict=True):
        assert ours.extra["features.scene"].shape == (9, 1, 5)
        np.testing.assert_allclose(ours.extra["features.scene"], theirs.extra["features.scene"], atol=1e-6)


def test_other_weights_are_refused(stored):
    with pytest.raises(ValueError, match="other weights than those that made"):
        LiveFeatures.like(stored.root, "ffffffffffff")
