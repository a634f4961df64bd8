"""Random motion: within its limits of place, speed and acceleration, smooth, everywhere, and the same for a seed."""

import numpy as np
import pytest

from robots.fake import AXES
from selfalign.robots.motion import BRISK, CALM, RandomMotion, Tempo, narrowed
from selfalign.robots.protocol import Axis, Description, Reading
from selfalign.robots.safety import Guard

HZ = 20.0


def path(kind: str, seed: int = 0, steps: int = 2000, allows=lambda target: True, tempo=CALM) -> np.ndarray:
    motion = RandomMotion(AXES, HZ, np.random.default_rng(seed), kind, allows, tempo)
    targets = [np.array([0.0, 20.0, 0.0])]
    motion.begin(targets[0])
    for _ in range(steps):
        targets.append(motion.next(targets[-1]))
    return np.array(targets)


# Control steps are coarse beside a short ramp: an end may be met an eighth of a step too early.
@pytest.mark.parametrize(
    ("tempo", "ramp", "slack"), [(CALM, 0.4, 1 + 1e-9), (BRISK, 0.1, 1.125)], ids=["calm", "brisk"]
)
@pytest.mark.parametrize("kind", ["waypoints", "babble"])
def test_motion_keeps_its_limits_and_goes_everywhere(kind, tempo, ramp, slack):
    targets = path(kind, tempo=tempo)
    for i, axis in enumerate(AXES[:2]):
        speed = np.diff(targets[:, i]) * HZ
        assert targets[:, i].min() >= axis.low and targets[:, i].max() <= axis.high
        assert np.abs(speed).max() <= axis.speed + 1e-9
        assert np.abs(np.diff(speed)).max() <= slack * axis.speed / ramp / HZ  # from rest to full speed
        assert np.ptp(targets[:, i]) > 0.8 * (axis.high - axis.low)
        assert len(np.unique(np.histogram(targets[:, i], 5, (axis.low, axis.high))[0])) > 1
        assert (np.histogram(targets[:, i], 5, (axis.low, axis.high))[0] > 0).all()
    assert set(targets[:, 2]) == {0.0, 1.0}
    toggles = np.count_nonzero(np.diff(targets[:, 2]))
    assert 40 < toggles < 130  # 0.8 a second over 100 s


@pytest.mark.parametrize("kind", ["waypoints", "babble"])
@pytest.mark.parametrize("speed", [200.0, 70.0])
def test_an_axis_that_toggles_at_a_speed_gets_to_its_ends(kind, speed):
    axes = (Axis("lift", -1.0, 1.0, speed=2.0), Axis("gripper", 5.0, 100.0, speed=speed, toggles=True))
    guard = Guard(Description("slow gripper", HZ, axes, ("lift", "gripper")))
    motion = RandomMotion(axes, HZ, np.random.default_rng(0), kind, guard.allows)
    guard.begin(Reading(np.array([0.0, 5.0])))
    targets = [guard.target]
    motion.begin(guard.target)
    for _ in range(2000):
        targets.append(guard.limit(motion.next(targets[-1])))
    gripper = np.array(targets)[:, 1]
    moves = np.sign(np.diff(gripper))
    turns = np.count_nonzero(np.diff(moves[moves != 0]))
    assert 40 < turns < 130  # 0.8 a second over 100 s
    assert (gripper == 5.0).mean() > 0.1 and (gripper == 100.0).mean() > 0.1
    assert np.abs(np.diff(gripper)).max() == pytest.approx(speed / HZ)
    assert set(gripper[1:][moves == 0]) == {5.0, 100.0}  # it stands still nowhere else
    assert not guard.held_back


@pytest.mark.parametrize("kind", ["waypoints", "babble"])
def test_brisk_motion_is_faster_for_the_same_limits(kind):
    calm, brisk = (np.abs(np.diff(path(kind, tempo=tempo)[:, :2], axis=0)).mean(axis=0) for tempo in (CALM, BRISK))
    assert (brisk > 1.3 * calm).all()


@pytest.mark.parametrize("values", [(0.0, 0.5), (0.1, 0.0), (0.1, 1.5), (float("nan"), 0.5)])
def test_a_tempo_that_no_motion_has_is_refused(values):
    with pytest.raises(ValueError, match="a positive ramp and a slowest part"):
        Tempo(*values)


def test_waypoints_are_approached_together_and_babbling_axes_move_by_themselves():
    def one_alone(targets):
        """Share of steps at which the first axis goes at a tenth of its speed or more, and the second rests."""
        speed = np.abs(np.diff(targets[:, :2], axis=0)) * HZ / [2.0, 20.0]
        return ((speed[:, 0] > 0.1) & (speed[:, 1] < 0.001)).mean()

    assert one_alone(path("waypoints")) < 0.05
    assert one_alone(path("babble")) > 0.1


def test_a_seed_is_a_motion():
    assert np.array_equal(path("babble", 3, 50), path("babble", 3, 50))
    assert not np.array_equal(path("babble", 3, 50), path("babble", 4, 50))


def test_motion_turns_back_where_it_may_not_go():
    targets = path("waypoints", allows=lambda target: target[0] <= 0.3)
    assert 0.2 < targets[:, 0].max() <= 0.3 and targets[:, 0].min() < -0.7


def test_motion_comes_to_rest_as_smoothly():
    motion = RandomMotion(AXES, HZ, np.random.default_rng(0))
    target = np.array([0.0, 20.0, 1.0])
    motion.begin(target)
    for _ in range(12):
        target = motion.next(target)
    assert not motion.resting
    targets = [target]
    while not motion.resting:
        targets.append(motion.slow_down(targets[-1]))
    assert 1 < len(targets) < 15
    assert np.abs(np.diff(np.diff(targets, axis=0), axis=0))[:, 0].max() * HZ**2 <= 2.0 / 0.4 + 1e-9
    assert len({target[2] for target in targets}) == 1


def test_less_room_and_speed_stay_within_the_limits():
    lift, turn, gripper = narrowed(AXES, np.array([0.9, 20.0, 0.0]), reach=0.5, speed=0.25)
    assert (lift.low, lift.high, lift.speed) == (0.0, 1.0, 0.5)
    assert (turn.low, turn.high, turn.speed) == (15.0, 25.0, 5.0)
    assert gripper == AXES[2]
    assert (lift.farthest, turn.farthest) == (0.25, 2.5)  # a quarter of the room, as before it was narrowed
    for reach, speed in ((0.0, 1.0), (1.5, 1.0), (1.0, -1.0), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match="reach and speed are parts"):
            narrowed(AXES, np.zeros(3), reach, speed)


@pytest.mark.parametrize(("reach", "left"), [(1.0, (0.2, 1.2)), (0.5, (0.2, 0.6)), (0.1, (0.05, 0.12))])
def test_a_lag_of_the_robots_own_shrinks_only_as_far_as_the_room_asks(reach, left):
    axes = tuple(Axis("a", -1.0, 1.0, speed=1.0, lag=lag) for lag in (0.2, 1.2))
    assert [axis.farthest for axis in narrowed(axes, np.zeros(2), reach, 1.0)] == pytest.approx(left)


def test_an_axis_that_is_outside_comes_back_smoothly():
    for kind in ("waypoints", "babble"):
        motion = RandomMotion(AXES, HZ, np.random.default_rng(0), kind)
        targets = [np.array([1.05, 9.5, 0.0])]
        motion.begin(targets[0])
        for _ in range(100):
            targets.append(motion.next(targets[-1]))
        path = np.array(targets)[:, :2]
        assert np.abs(np.diff(path, axis=0, n=2) * HZ**2).max(axis=0) == pytest.approx(
            [5.0, 50.0]
        )  # 0.4 s to full speed
        assert (path.max(axis=0) <= [1.05, 30.0]).all() and (path.min(axis=0) >= [-1.0, 9.5]).all()
        assert (path[60:] <= [1.0, 30.0]).all() and (path[60:] >= [-1.0, 10.0]).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"low": 2.0}, "low must be below high"),
        ({"high": float("nan")}, "low must be below high"),
        ({"speed": 0.0}, "speed must be positive"),
        ({"step": -1.0}, "step must be positive"),
        ({"speed": float("inf")}, "has no speed limit"),
    ],
)
def test_axes_that_make_no_sense_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        Axis(**{"name": "a", "low": 0.0, "high": 1.0, "speed": 1.0} | change)
