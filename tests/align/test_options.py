"""What pretraining can do otherwise, for ablations: each option against what it is said to be."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from align.factory import make_episode, small_policy
from align.rehearsing import HORIZON, make_sources, state_for, tiny_model
from selfalign.align.pretrain import frame_features
from selfalign.data.play import Play
from selfalign.data.transforms import pixels_to_model
from selfalign.data.virtual import ModelShape, PlayUse
from selfalign.model.alignment import AlignmentLayout
from selfalign.model.policy import VLA
from selfalign.policy import Policy


@pytest.mark.parametrize("detach", [True, False])
def test_what_moves_the_contexts(small_sources, detach):
    objective = state_for(small_sources, detach=detach).objective
    (part,) = objective.draw(1)
    torch.manual_seed(5)
    objective.losses(part).total.backward()
    leaves = objective._leaves
    prior = objective.model.prior()
    live = objective.model.contexts.context(prior, leaves)
    batches = objective.batches
    expected = batches.alignment_losses(part, live).total
    if not detach:
        expected = expected + batches.action_losses(part, live).total
    for leaf, gradient in zip(leaves, torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(leaf.grad, gradient)
        assert leaf.grad.abs().max() > 0


def test_fixed_source_bodies_come_again(small_sources):
    def seen(**changes) -> set[str]:
        batches, rng = state_for(small_sources, **changes).objective.batches, np.random.default_rng(0)
        bodies = [batches.sample(rng, 0) for _ in range(30)]
        return {str((body.rig, body.perturbation.to_dict(), body.play_episodes.tolist())) for body in bodies}

    fixed = seen(source_bodies=4)
    assert len(fixed) == 4 and seen(source_bodies=4) == fixed and len(seen()) == 30
    assert len(seen(source_bodies=4, scheme="global")) == 4
    with pytest.raises(ValueError, match=r"source_bodies=0 \(at least 1\)"):
        seen(source_bodies=0)


def test_what_serves_as_play(small_cache):
    of_play = make_sources(small_cache).sample(np.random.default_rng(0), rig=0)
    assert set(of_play.play_episodes) <= set(small_cache.episodes_of(0, True))
    shown = make_sources(small_cache, play=PlayUse("demonstrations")).sample(np.random.default_rng(0), rig=0)
    assert set(shown.play_episodes) <= set(small_cache.episodes_of(0, False)) and len(shown.play)
    little = make_sources(small_cache, play=PlayUse(trajectories=1))
    for seed in range(4):
        body = little.sample(np.random.default_rng(seed), rig=0)
        assert body.play_episodes.tolist() == small_cache.episodes_of(0, True)[:1].tolist()
    with pytest.raises(ValueError, match="at least 1 trajectory"):
        PlayUse(trajectories=0)


def test_units_that_are_not_those_of_play(small_cache):
    own, other = (make_sources(small_cache, play=PlayUse(unit_width=width)) for width in (0.0, 1.0))
    plain, body = (sources.sample(np.random.default_rng(3), rig=0) for sources in (own, other))
    assert plain.units is None and np.array_equal(body.play_episodes, plain.play_episodes)
    normal = own.embodiment(0, body.perturbation, body.play_episodes)
    for field, dims in (("state", body.stats.state_dim), ("action", body.stats.action_dim)):
        before, after = (getattr(x, field)[:, :dims].numpy().astype(float) for x in (normal, body))
        slopes, shifts = np.array([np.polyfit(b, a, 1) for a, b in zip(before.T, after.T, strict=True)]).T
        np.testing.assert_allclose(before, slopes * after + shifts, atol=1e-4)
        assert (slopes > 1 / 3 - 1e-6).all() and (slopes < 3 + 1e-6).all() and np.ptp(slopes) > 0.01
        assert (np.abs(shifts) <= 1 + 1e-5).all() and np.abs(shifts).max() > 0.1
    canonical = other.sample(np.random.default_rng(3), rig=0, width=0.0)
    unmoved = own.embodiment(0, canonical.perturbation, canonical.play_episodes)
    assert torch.equal(canonical.action, unmoved.action), "at width 0 they are those of play"
    with pytest.raises(ValueError, match="width of units lies between 0 and 1, got 2"):
        PlayUse(unit_width=2)


def test_units_outlive_a_checkpoint(small_cache):
    sources = make_sources(small_cache, play=PlayUse(unit_width=1.0))
    slots = state_for(sources).objective.slots
    lives = slots.first()
    again = slots.restored(slots.state_dict(lives))
    for body, other in zip(lives.bodies, again.bodies, strict=True):
        assert body.units == other.units and body.units is not None
        assert torch.equal(body.action, other.action) and torch.equal(body.state, other.state)
    assert len({body.units for body in lives.bodies}) == len(lives.bodies)


@pytest.mark.parametrize("offset", [1, 3, None])
def test_the_next_observation_of_a_batch_is_that_after_the_offset(small_cache, offset):
    sources = make_sources(small_cache)
    sources.shape = ModelShape(HORIZON, 8, 8, offset)
    # Features that say which frame they are of, and which state was there.
    frames = np.arange(small_cache.num_frames, dtype=np.float32)
    shape = sources.features.next_features.shape
    following = np.broadcast_to(frames[:, None, None], shape).copy()
    sources.features = replace(sources.features, next_features=following)
    rng = np.random.default_rng(0)
    body = sources.sample(rng, rig=0)
    batch = sources.play_batch([body], 16, rng)
    place = {tuple(state.numpy().round(4)): frame for state, frame in zip(body.state, body.frames, strict=True)}
    now = np.array([place[tuple(state.numpy().round(4))] for state in batch.observation.state])
    np.testing.assert_array_equal(batch.next_features[:, 0, 0].numpy(), now + (HORIZON if offset is None else offset))


def changed_policy(**changes) -> Policy:
    policy = small_policy()
    torch.manual_seed(1)
    return Policy.from_model(VLA(replace(policy.model.config, **changes)).eval(), policy.settings)


def test_the_next_observation_of_play_is_that_after_the_offset():
    policy, episode = changed_policy(next_offset=2), make_episode(length=9)
    stats = Play.from_episodes([episode]).stats()
    found = policy.transitions([episode], stats).next_features
    tokens = policy.model.vision(pixels_to_model(episode.images["scene"]))
    expected = policy.model.next_features({"scene": tokens[2 : 2 + len(found)]})
    assert len(found) == 9 - policy.model.config.action_horizon
    torch.testing.assert_close(found, expected)


def test_shrunk_pictures_are_means_of_their_parts_in_training_and_in_aligning(small_cache, tmp_path):
    policy = changed_policy(next_pixels=4)
    cache, model = small_cache, policy.model
    features = frame_features(model, cache, tmp_path)
    images = np.asarray(cache.images("scene"))
    pixels = images.astype(np.float64) / 127.5 - 1
    plain = pixels.reshape(len(images), 4, 4, 4, 4, 3).mean(axis=(2, 4)).transpose(0, 3, 1, 2).reshape(len(images), 48)
    mean, std = plain.mean(0), plain.std(0, ddof=1).clip(1e-3)
    np.testing.assert_allclose(features.next_features[:, 0], (plain - mean) / std, atol=2e-4)
    start, length = int(cache.episode_starts[0]), int(cache.episode_lengths[0])
    episode = make_episode(length=length, images={"scene": images[start : start + length]})
    found = Policy.from_model(model).transitions([episode], Play.from_episodes([episode]).stats()).next_features
    horizon = model.config.action_horizon
    np.testing.assert_allclose(found.numpy(), features.next_features[start + horizon : start + length], atol=2e-4)


def test_what_a_config_cannot_say():
    config = tiny_model().config
    for changes, told in (
        ({"next_offset": 0}, "next_offset must be 1 to the horizon of 4, got 0"),
        ({"next_offset": 5}, "got 5"),
        ({"next_pixels": 17}, "next_pixels must be 0 to the picture's 16"),
    ):
        with pytest.raises(ValueError, match=told):
            replace(config, **changes)


def test_an_open_perception_sees_everything_and_nothing_else_changes():
    plain, open_ = AlignmentLayout(3, 2).mask(), AlignmentLayout(3, 2, open_perception=True).mask()
    assert open_[0].all() and not plain[0, 1:].any()
    assert torch.equal(open_[1:], plain[1:])


def test_fixed_source_bodies_are_those_of_the_seed(small_sources):
    def seen(seed: int) -> set[str]:
        batches = state_for(small_sources, source_bodies=4, seed=seed).objective.batches
        bodies = [batches.sample(np.random.default_rng(i), 0) for i in range(20)]
        return {str(body.perturbation.to_dict()) for body in bodies}

    assert len(seen(0)) == 4 and seen(0) == seen(0) and not seen(0) & seen(1)
