"""Shares of data sets in what is drawn."""

from collections import Counter

import numpy as np
import pytest

from align.rehearsing import make_sources
from selfalign.data.episodes import Episode
from selfalign.data.lerobot import LeRobotWriter
from selfalign.data.mixture import embodiment_odds
from selfalign.data.sources import SourceData


def write(root, names):
    with LeRobotWriter(root, embodiments=[{"name": name} for name in names]) as writer:
        for i in range(len(names)):
            numbers = np.zeros((3, 4), np.float32)
            images = {"scene": np.zeros((3, 16, 16, 3), np.uint8)}
            writer.add_episode(Episode(images, numbers, numbers, embodiment_index=i, is_play=True))
    return root


def test_every_data_set_has_its_share_and_its_bodies_share_it(tmp_path):
    write(tmp_path / "first" / "shard-00", ["a", "b"])
    write(tmp_path / "first" / "shard-01", ["c"])
    write(tmp_path / "second", ["d", "a"])
    source = SourceData.open([tmp_path / "first", tmp_path / "second"])
    odds = dict(zip([body["name"] for body in source.embodiments], embodiment_odds(source, [1, 3]), strict=True))
    assert odds == pytest.approx({"a": 1 / 12 + 3 / 8, "b": 1 / 12, "c": 1 / 12, "d": 3 / 8})


def test_paths_of_one_name_are_one_data_set(tmp_path):
    first, second, third = (write(tmp_path / name, [name]) for name in ("a", "b", "c"))
    source = SourceData.open([f"lerobot:{first},{second}", third], cameras={"top": "scene"})
    np.testing.assert_allclose(embodiment_odds(source, [3, 1]), [3 / 8, 3 / 8, 1 / 4])


@pytest.mark.parametrize(("weights", "message"), [([1], "2 data sets were given and 1 weights"), ([1, 0], "positive")])
def test_wrong_weights_are_named(tmp_path, weights, message):
    paths = [write(tmp_path / name, [name]) for name in ("a", "b")]
    with pytest.raises(ValueError, match=message):
        embodiment_odds(SourceData.open(paths), weights)


def test_rigs_are_drawn_by_their_odds(small_cache):
    rng, sources = np.random.default_rng(0), make_sources(small_cache, rig_odds=np.array([0.9, 0.1]))
    drawn = Counter(sources.sample(rng).rig for _ in range(300))
    assert 250 <= drawn[0] <= 288 and drawn[0] + drawn[1] == 300
