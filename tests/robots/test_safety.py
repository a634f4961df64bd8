"""The guard: what is commanded beyond a limit is held back, what is measured beyond one ends the motion."""

from dataclasses import replace

import numpy as np
import pytest

from robots.fake import DESCRIPTION, FakeRobot
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


def test_a_gripper_is_not_watched_and_servos_may_overshoot_a_little():
    guard = begun()
    guard.check(Reading(np.array([0.0, 20.0, 77.0])))
    guard = Guard(DESCRIPTION)
    assert guard.begin(Reading(np.array([1.05, 20.0, 0.5])))[0] == 1.0  # its target is within the range again


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
