"""A lower control rate: the same commands in longer periods, undone where nothing was lost."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.factory import assert_same, make_episode
from selfalign.data.changes import Inverse
from selfalign.data.episodes import Episode
from selfalign.data.perturb import accumulate
from selfalign.data.rate import ControlRate

rates = st.builds(ControlRate, st.integers(1, 4), st.booleans())


def assert_close(actual: Episode, expected: Episode) -> None:
    np.testing.assert_allclose(actual.action, expected.action, atol=1e-5)
    np.testing.assert_allclose(actual.state, expected.state, atol=1e-5)
    assert_same(replace(actual, action=expected.action, state=expected.state), expected)


@given(rates, st.integers(0, 2**32 - 1), st.integers(1, 12))
@settings(max_examples=25, deadline=None)
def test_a_higher_rate_is_undone_for_every_episode(rate, seed, length):
    """A faster body's recording holds the recorded one."""
    faster, episode = Inverse(rate), make_episode(seed % 1000, length, size=(2, 2))
    there = faster.apply(episode)
    assert len(there) == length * rate.every and there.fps == episode.fps * rate.every
    assert_close(faster.invert(there), episode)


def even(seed: int, rate: ControlRate, periods: int) -> Episode:
    """An episode that loses nothing at the lower rate: see `ControlRate`."""
    rng, every = np.random.default_rng(seed), rate.every
    slow = make_episode(seed, periods, size=(2, 2))
    episode = replace(slow, **{name: np.repeat(getattr(slow, name), every, axis=0) for name in ("state", "action")},
        images={"scene": np.repeat(slow.images["scene"], every, axis=0)},
        extra={name: np.repeat(values, every, axis=0) for name, values in slow.extra.items()},
        fps=slow.fps * every,
    )  # fmt: skip
    corners = rng.normal(size=(periods, 4))
    for period in range(periods - 1):
        for step in range(every):
            way = step / every
            episode.state[period * every + step] = (1 - way) * corners[period] + way * corners[period + 1]
    episode.state[-every:] = corners[-1]
    if rate.targets:
        targets = rng.normal(size=(periods, 3))
        for period in range(periods):
            for step in range(every):
                start, way = targets[max(0, period - 1)], (step + 1) / every
                episode.action[period * every + step, :3] = (1 - way) * start + way * targets[period]
    return episode


@given(rates, st.integers(0, 10_000), st.integers(1, 6))
@settings(max_examples=25, deadline=None)
def test_a_lower_rate_is_undone_where_motion_is_even(rate, seed, periods):
    episode = even(seed, rate, periods)
    there = rate.apply(episode)
    assert len(there) == periods and there.fps == pytest.approx(episode.fps / rate.every)
    assert_close(rate.invert(there), episode)


def test_displacements_lead_to_the_same_targets_and_grippers_are_held():
    episode = make_episode(0, length=11)
    there = ControlRate(3).apply(episode)
    assert len(there) == 3 and not ControlRate(3).exact
    origin = np.array([0.1, 0.2, 0.3])
    went, comes = (accumulate(e.action.astype(np.float64), origin, 0.03)[:, :3] for e in (episode, there))
    np.testing.assert_allclose(comes, went[2:9:3], atol=1e-6)
    np.testing.assert_array_equal(there.action[:, 3], episode.action[2:9:3, 3])
    np.testing.assert_array_equal(there.state, episode.state[:9:3])
    np.testing.assert_array_equal(there.images["scene"], episode.images["scene"][:9:3])
    np.testing.assert_array_equal(there.extra["grasped"], episode.extra["grasped"][:9:3])


def test_of_targets_the_last_counts_and_other_numbers_may_be_held():
    episode = make_episode(0, length=6)
    np.testing.assert_array_equal(ControlRate(2, targets=True).apply(episode).action, episode.action[1::2])
    two_grippers = ControlRate(2, held=(0, 3)).apply(episode).action
    np.testing.assert_array_equal(two_grippers[:, [0, 3]], episode.action[1::2, [0, 3]])
    np.testing.assert_allclose(two_grippers[:, 1], episode.action[::2, 1] + episode.action[1::2, 1], rtol=1e-6)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="at least one command, got every=0"):
        ControlRate(0)
    with pytest.raises(ValueError, match="2 frames has no period of 3 commands"):
        ControlRate(3).apply(make_episode(0, length=2))
