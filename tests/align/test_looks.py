"""Other looks of recorded frames: through turned cameras, each rig's its own, and read by the bodies that have them."""

import dataclasses

import numpy as np
import pytest
import torch

from align.rehearsing import make_sources
from selfalign.align.looks import camera_turn, picture_blocks, turned_looks
from selfalign.data.cache import EpisodeCache
from selfalign.data.episodes import Episode
from selfalign.data.virtual import FrameFeatures


def pictures(cache: EpisodeCache, look: str | None) -> np.ndarray:
    """Block by block, back in bytes and LeRobot's order of axes."""
    pixels = torch.cat(list(picture_blocks(cache, "scene", look, batch=7)))
    return ((pixels.permute(0, 2, 3, 1).numpy() + 1) * 127.5).round().astype(np.uint8)


def test_a_turned_look_is_every_rigs_episodes_turned(small_cache):
    np.testing.assert_array_equal(pictures(small_cache, None), small_cache.images("scene"))
    (look,) = turned_looks(1)
    found = pictures(small_cache, look)
    for index, start in enumerate(small_cache.episode_starts):
        rows = slice(start, start + small_cache.episode_lengths[index])
        numbers = np.zeros((len(found[rows]), 3), np.float32)
        episode = Episode({"scene": np.array(small_cache.images("scene")[rows])}, numbers, numbers)
        turn = camera_turn("scene", int(small_cache.embodiment_index[index]), look)
        np.testing.assert_array_equal(found[rows], turn.apply(episode).images["scene"])


def test_every_camera_of_every_rig_turns_in_its_own_way():
    turns = [camera_turn(c, rig, look) for c in ("scene", "wrist") for rig in (0, 1) for look in turned_looks(2)]
    assert len({turn.rotation for turn in turns}) == 8
    assert camera_turn("scene", 1, "turned-2") == camera_turn("scene", 1, "turned-2")


def looking(cache: EpisodeCache, looks: int):
    sources = make_sources(cache, any_look=True, keypoint_words=("red",))
    plain = sources.features
    others = (
        FrameFeatures({c: values + n for c, values in plain.tokens.items()}, plain.next_features - n)
        for n in range(1, looks + 1)
    )
    sources.features = dataclasses.replace(plain, looks=tuple(others))
    return sources


def test_bodies_have_any_look_and_see_what_it_shows(small_cache):
    sources = looking(small_cache, 2)
    bodies = [sources.sample(np.random.default_rng(seed)) for seed in range(30)]
    assert {body.look for body in bodies} == {0, 1, 2}
    assert all(sources.sample(np.random.default_rng(seed), width=0.0).look == 0 for seed in range(10))
    same = [dataclasses.replace(bodies[0], look=look) for look in (0, 1, 2)]
    mixed = sources.play_batch(same, 3, np.random.default_rng(0))
    for number, body in enumerate(same):
        rows, rng = slice(3 * number, 3 * number + 3), np.random.default_rng(0)
        for _ in range(number):
            rng.choice(body.play, size=3)
        frames = body.frames[rng.choice(body.play, size=3)]
        tokens = sources.features.tokens["scene"][frames] + np.float16(number)
        np.testing.assert_array_equal(mixed.observation.image_features["scene"][rows], tokens.astype(np.float32))
    shown = sources.demonstration_batch([same[2]], 4, np.random.default_rng(1))
    np.testing.assert_array_equal(shown.referent, shown.observation.image_features["scene"][:, 0, :2])


def test_a_look_that_is_not_there_is_named(small_cache):
    sources = looking(small_cache, 1)
    body = dataclasses.replace(sources.sample(np.random.default_rng(0)), look=2)
    with pytest.raises(ValueError, match="needs features of frames that look so"):
        sources.play_batch([body], 2, np.random.default_rng(0))
