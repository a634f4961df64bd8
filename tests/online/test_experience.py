"""Steps become play: which looks are transitions, what breaks a chain, and how many there are."""

import dataclasses
import gc
import weakref

import numpy as np
import pytest
import torch

from align.factory import HORIZON, make_episode, make_play, small_policy
from online.steps import many_steps, steps_of
from selfalign.online.experience import LOOKS, Step, TransitionCounter, to_play


def count(steps) -> int:
    counter = TransitionCounter(HORIZON)
    return sum(counter.add(step) for step in steps)


def test_a_step_comes_back_as_it_was():
    step = steps_of(make_episode(0))[3]
    again = Step.unpack(step.pack())
    assert (again.chain, again.index, again.time, again.pictures) == (step.chain, step.index, step.time, step.pictures)
    np.testing.assert_array_equal(again.state, step.state)
    np.testing.assert_array_equal(again.executed, step.executed)
    assert again.executed.dtype == step.executed.dtype == np.float32
    first = Step.unpack(steps_of(make_episode(0))[0].pack())
    assert first.executed.shape == (0, 3)
    with pytest.raises(ValueError, match="is no step of a robot"):
        Step.unpack(step.pack()[:-3])
    with pytest.raises(ValueError, match="is no step of a robot"):
        Step.unpack(b"\0" * 40)


def test_counting_transitions_keeps_no_pictures():
    """The counter knows up to a thousand chains, and most of them have ended."""
    counter, step = TransitionCounter(HORIZON), steps_of(make_episode(0))[0]
    pictures = weakref.ref(step)
    counter.add(step)
    del step
    gc.collect()
    assert pictures() is None


@pytest.mark.parametrize(("every", "expected"), [(1, 13), (2, 7), (4, 4), (3, 0)])
def test_transitions_are_looks_exactly_a_horizon_apart(every, expected):
    """17 frames, horizon 4: looks at 0, 2, ..., 16 give starts 0, 2, ..., 12."""
    steps = steps_of(make_episode(1, 17), every)
    assert count(steps) == expected
    if expected:
        assert to_play(steps, HORIZON, "toy").num_transitions(HORIZON) == expected
    else:
        with pytest.raises(ValueError, match="nowhere are two looks exactly 4 actions apart; look after a number"):
            to_play(steps, HORIZON, "toy")


def test_the_play_is_what_the_robot_did():
    policy, episode = small_policy(), make_episode(2, 17)
    stats = make_play().stats()
    expected = policy.transitions([episode], stats, stride=2)
    actual = policy.transitions(to_play(steps_of(episode, 2), HORIZON, "toy"), stats)
    torch.testing.assert_close(actual.observation.state, expected.observation.state)
    torch.testing.assert_close(actual.actions.values, expected.actions.values, rtol=0, atol=0)
    torch.testing.assert_close(actual.next_features, expected.next_features)


def test_whatever_is_missing_breaks_the_chain():
    steps = steps_of(make_episode(3, 17), 4)  # looks at 0, 4, 8, 12, 16
    gap = steps[:2] + steps[3:]
    assert count(gap) == 2 and to_play(gap, HORIZON, "toy").num_transitions(HORIZON) == 2
    other = [dataclasses.replace(step, chain="b") for step in steps[2:]]
    assert count(steps[:2] + other) == 3
    camera = [dataclasses.replace(s, pictures={"wrist": s.pictures["scene"]}) for s in steps[3:]]
    assert count(steps[:3] + camera) == 3
    play = to_play(steps[:3] + camera, HORIZON, "toy")
    assert play.cameras == ("wrist",) and play.num_transitions(HORIZON) == 1, "only what is like the newest"


def test_chains_may_be_interleaved():
    a, b = steps_of(make_episode(4, 17), 2, "a"), steps_of(make_episode(5, 17), 2, "b", time=0.5)
    mixed = [step for pair in zip(a, b, strict=True) for step in pair]
    assert count(mixed) == 14 and to_play(mixed, HORIZON, "toy").num_transitions(HORIZON) == 14


def test_a_long_chain_becomes_several_episodes():
    steps = steps_of(make_episode(6, 200), 2)
    play = to_play(steps, HORIZON, "toy")
    assert [len(episode.observed) for episode in play.episodes] == [LOOKS, LOOKS, LOOKS, 4]
    np.testing.assert_array_equal(play.episodes[1].observed, np.arange(0, 2 * LOOKS, 2))
    np.testing.assert_array_equal(play.episodes[1].state[0], steps[LOOKS].state)


def test_the_newest_are_taken_whole():
    steps = many_steps(6)  # 7 transitions each
    play = to_play(steps, HORIZON, "toy", newest=10)
    assert play.num_transitions(HORIZON) == 14
    np.testing.assert_array_equal(play.episodes[-1].state[-1], steps[-1].state)
