"""The guard: what is commanded beyond a limit is held back, what is measured beyond one ends the motion."""

from dataclasses import replace

import numpy as np
import pytest

from robots.fake import DESCRIPTION, FakeRobot
from selfalign.robots.motion import narrowed
from selfalign.robots.protocol import Box, Description, Reading
from selfalign.robots.safety import Guard, SafetyStop

START = Reading(np.array([0.0, 20.0, 0.0]))
BOX = Box((-0.5, -0.1, -0.1), (0.5, 0.1, 0.1))


def begun(description=DESCRIPTION, **options) -> Guard:
    guard = Guard(description, **options)
    guard.begin(START)
    return guard


def test_targets_are_held_within_speed_and_range_and_counted():
    guard = begun()
    assert np.allclose(guard.limit(np.array([5.0, 0.0, 1.0])), [0.1, 19.0, 1.0])  # a twentieth of a second
    assert guard.held_back == {"speed of lift": 1, "speed of turn": 1}
    for _ in range(30):
        target = guard.limit(np.array([5.0, 19.0, 1.0]))
    assert np.allclose(target, [1.0, 19.0, 1.0])
    assert guard.held_back["range of lift"] > 0 and guard.held_back["range of turn"] == 0
    assert np.array_equal(guard.target, target)


def test_what_is_within_the_limits_passes_unchanged():
    guard, wanted = begun(), np.array([0.099, 20.9, 1.0])
    assert np.array_equal(guard.limit(wanted), wanted) and not guard.held_back
    guard.check(Reading(wanted))


def test_the_tip_stays_in_the_workspace():
    guard = begun(replace(DESCRIPTION, workspace=BOX, tip_of=FakeRobot.tip))
    for _ in range(20):
        target = guard.limit(guard.target + [0.07, 0.0, 0.0])
    assert 0.4 < target[0] <= 0.5
    assert guard.held_back["workspace"] > 0


def test_a_tip_that_is_outside_may_come_back_and_not_go_farther_out():
    guard = Guard(replace(DESCRIPTION, workspace=BOX, tip_of=FakeRobot.tip))
    guard.begin(Reading(np.array([0.54, 20.0, 0.0])))
    for wanted in (0.58, 0.54, -0.6):
        assert not guard.allows(np.array([wanted, 20.0, 0.0]))
    assert guard.limit(np.array([0.58, 20.0, 0.0]))[0] == 0.54 and not guard.moved
    assert guard.limit(np.array([0.52, 20.0, 0.0]))[0] == 0.52 and guard.moved  # nearer
    assert not guard.allows(np.array([0.53, 20.0, 0.0]))
    assert guard.limit(np.array([0.45, 20.0, 0.0]))[0] == 0.45  # within
    assert not guard.allows(np.array([0.51, 20.0, 0.0]))


@pytest.mark.parametrize(
    ("point", "away"),
    [((0.0, 0.0, 0.0), 0.0), ((0.5, 0.1, -0.1), 0.0), ((0.8, 0.0, -0.5), 0.5), ((0.0, -0.3, 0.0), 0.2)],
)
def test_how_far_a_point_is_from_a_box(point, away):
    assert BOX.away(np.array(point)) == pytest.approx(away)


@pytest.mark.parametrize(
    ("reading", "words"),
    [
        (replace(START, contact=True), "reports contact"),
        (Reading(np.array([np.nan, 20.0, 0.0])), "finite positions, one for each axis"),
        (Reading(np.array([0.0, 20.0])), "finite positions, one for each axis"),
        (Reading(np.array([1.2, 20.0, 0.0])), r"'lift' is at 1\.2, beyond its limits -1 to 1"),
        (Reading(np.array([0.0, 8.9, 0.0])), r"'turn' is at 8\.9, beyond its limits 10 to 30"),
        (Reading(np.array([0.6, 20.0, 0.0])), r"'lift' is 0\.6 from where it was commanded \(limit 0\.5\)"),
        (replace(START, tip=np.array([0.0, 0.0, 0.2])), r"tip is at \[0\.000, 0\.000, 0\.200\] m, outside"),
        (replace(START, tip=np.array([np.nan, 0.0, 0.0])), "tip is at .*outside"),
    ],
)
def test_measurements_beyond_a_limit_stop_the_robot(reading, words):
    description = replace(DESCRIPTION, workspace=BOX, tip_of=lambda position: np.zeros(3))
    with pytest.raises(SafetyStop, match=words):
        begun(description).check(reading)


def test_a_gripper_is_not_watched():
    begun().check(Reading(np.array([0.0, 20.0, 77.0])))


@pytest.mark.parametrize(("at", "end", "way"), [([1.05, 20.0, 0.0], 1.0, -0.04), ([-1.05, 20.0, 0.0], -1.0, 0.04)])
def test_servos_may_overshoot_a_little_and_come_back_at_their_speed(at, end, way):
    guard, at = Guard(DESCRIPTION), np.array(at)
    assert np.array_equal(guard.begin(Reading(at)), at)  # no jump to the limit
    assert guard.limit(at - [way, 0.0, 0.0])[0] == at[0]  # nor a step away from it
    assert guard.limit(at + [way, 0.0, 0.0])[0] == pytest.approx(at[0] + way)
    assert guard.limit(guard.target + [way, 0.0, 0.0])[0] == pytest.approx(at[0] + 2 * way)
    assert guard.limit(np.array([2 * end, 20.0, 0.0]))[0] == end


def test_less_room_and_speed_are_the_limits_where_they_are_asked_for():
    at = np.array([0.0, 20.0, 0.0])
    axes = narrowed(DESCRIPTION.axes, at, reach=0.2, speed=0.1)  # lift from -0.2 to 0.2, at 0.2 a second
    guard = Guard(DESCRIPTION, axes)
    guard.begin(Reading(at))
    assert guard.limit(np.array([1.0, 20.0, 0.0]))[0] == pytest.approx(0.01)
    for _ in range(40):
        target = guard.limit(np.array([1.0, 20.0, 0.0]))
    assert target[0] == pytest.approx(0.2)
    guard.check(Reading(target + [0.09, 0.0, 0.0]))  # an overshoot of 5 % of the whole range
    with pytest.raises(SafetyStop, match=r"'lift' is at 0\.31, beyond its limits -0\.2 to 0\.2"):
        guard.check(Reading(np.array([0.31, 20.0, 0.0])))
    with pytest.raises(SafetyStop, match=r"'lift' is 0\.11 from where it was commanded \(limit 0\.1\)"):
        guard.check(Reading(target - [0.11, 0.0, 0.0]))


def test_contact_can_be_ignored():
    begun(stop_on_contact=False).check(replace(START, contact=True))


def test_a_workspace_that_cannot_be_watched_is_refused():
    with pytest.raises(SafetyStop, match="cannot be watched"):
        begun(replace(DESCRIPTION, workspace=BOX))


def test_targets_that_are_not_numbers_are_never_commanded():
    with pytest.raises(SafetyStop, match="not finite"):
        begun().limit(np.array([np.nan, 20.0, 0.0]))


def test_descriptions_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="names of their own"):
        replace(DESCRIPTION, axes=DESCRIPTION.axes + DESCRIPTION.axes[:1])
    with pytest.raises(ValueError, match="positive control rate"):
        replace(DESCRIPTION, hz=0.0)
    with pytest.raises(ValueError, match="low < high"):
        Box((0, 0, 1), (1, 1, 1))
    assert isinstance(DESCRIPTION, Description)
