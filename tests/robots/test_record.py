"""Recording a robot's play: what is written is what was done, and whatever happens, the robot is told to stop."""

import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest

from robots.fake import AXES, DESCRIPTION, FakeRobot
from selfalign.data.lerobot import LeRobotReader
from selfalign.data.lerobot_writer import LeRobotWriter
from selfalign.data.play import Play
from selfalign.robots import session
from selfalign.robots.motion import RandomMotion
from selfalign.robots.pace import NoPace, Pace
from selfalign.robots.protocol import Box, Reading
from selfalign.robots.record import PlayRecorder
from selfalign.robots.safety import Guard, SafetyStop
from selfalign.robots.session import RobotPlayConfig, run


@pytest.fixture
def play(tmp_path, monkeypatch):
    """Runs a session with a given robot; the data set's folder."""

    def of(robot, **options):
        monkeypatch.setattr(session, "load_robot", lambda name: robot)
        run(RobotPlayConfig("fake:robot", tmp_path / "play", **{"trajectories": 3, "length": 20} | options))
        return tmp_path / "play"

    return of


def episodes(folder):
    return list(LeRobotReader(folder).episodes())


def test_play_holds_what_was_seen_and_done(play, tmp_path):
    robot = FakeRobot()
    folder = play(robot)
    found = episodes(folder)
    assert [len(episode) for episode in found] == [20, 20, 20]
    assert all(episode.is_play and episode.task == "" and episode.fps == 20.0 for episode in found)
    assert np.array_equal(found[0].action, np.array(robot.actions[:20], np.float32))
    for episode in found:
        # The first axis is commanded by targets, the second by displacements of which 1 is half a unit.
        assert np.allclose(episode.state[1:, 0], episode.action[:-1, 0], atol=1e-6)
        assert np.allclose(np.diff(episode.state[:, 1]), 0.5 * episode.action[:-1, 1], atol=1e-4)
        assert np.array_equal(episode.images["scene"][:, 0, 0, 0], (100 + 100 * episode.state[:, 0]).astype(np.uint8))
    features = LeRobotReader(folder).info.features
    assert features["action"].names == ["lift", "turn", "gripper"]
    assert features["observation.state"].names == ["lift", "turn"]
    body = json.loads((folder / "meta" / "embodiments.json").read_text())[0]
    assert body["name"] == "fake" and body["axes"][2]["speed"] is None and body["control_hz"] == 20.0
    assert len(Play.open(folder)) == 3


def test_the_robot_rests_between_trajectories_and_is_let_go_of(play):
    robot = FakeRobot()
    play(robot)
    assert robot.calls.count("stop") == 3 and robot.calls[-2:] == ["stop", "close"]
    path = np.array([action[0] for action in robot.actions])
    first_stop = robot.calls.index("stop")
    assert first_stop > 20  # slowing down is not recorded
    assert abs(path[first_stop - 1] - path[first_stop - 2]) <= 2.0 / 0.4 / 20**2 + 1e-9


def test_motion_by_a_part_of_the_limits(play):
    states = np.concatenate([e.state for e in episodes(play(FakeRobot(), speed=0.1, reach=0.1, motion="babble"))])
    assert np.ptp(states[:, 1]) <= 2.0 + 1e-6 and np.abs(np.diff(states[:20, 1])).max() <= 0.1 + 1e-6


def test_an_axis_that_something_holds_stops_the_cautious_run_too(play):
    robot = FakeRobot()
    follow = robot.act

    def held(action):
        follow(action)
        robot.position[0] = 0.0

    robot.act = held
    with pytest.raises(SafetyStop, match=r"'lift' is .* from where it was commanded \(limit 0\.1\)"):
        play(robot, speed=0.2, reach=0.2, trajectories=20, length=100)  # in a room of 0.4
    assert np.abs(np.array(robot.actions)[:, 0]).max() < 0.1 + 0.02 + 1e-9  # the limit, and a step


@pytest.mark.parametrize(("moved_to", "stopped"), [(0.29, False), (0.5, True)])
def test_an_arm_that_moved_before_it_starts_comes_back_slowly_or_not_at_all(play, monkeypatch, moved_to, stopped):
    robot = FakeRobot()
    robot.description = replace(robot.description, hz=200.0, real_time=True)
    monkeypatch.setattr(session.time, "sleep", lambda seconds: robot.position.__setitem__(0, moved_to))
    if stopped:
        with pytest.raises(SafetyStop, match=r"'lift' is at 0\.5, beyond its limits -0\.2 to 0\.2"):
            play(robot, speed=0.1, reach=0.2)
        assert robot.actions == []
        return
    play(robot, speed=0.1, reach=0.2, length=100)
    path = np.array([moved_to, *(action[0] for action in robot.actions)])
    assert np.abs(np.diff(path)).max() <= 0.1 * 2.0 / 200 + 1e-9
    assert path.max() == moved_to and path[-1] <= 0.2


def test_pictures_can_be_stored_smaller(play):
    assert episodes(play(FakeRobot(), image_size=4))[0].images["scene"].shape == (20, 4, 4, 3)


@pytest.mark.parametrize(
    ("reading", "words"),
    [
        (Reading(np.array([0.0, 20.0, 0.0]), contact=True), "reports contact"),
        (Reading(np.array([3.0, 20.0, 0.0])), "'lift' is at 3, beyond"),
    ],
)
def test_a_limit_that_is_passed_stops_the_robot_and_keeps_what_is_finished(play, tmp_path, capsys, reading, words):
    robot = FakeRobot(readings={60: reading})
    with pytest.raises(SafetyStop, match=words):
        play(robot)
    assert robot.calls[-2:] == ["stop", "close"] and len(robot.actions) == 60
    kept = len(episodes(tmp_path / "play"))
    assert kept == robot.calls.count("stop") - 1 >= 1
    assert f"holds the {kept} trajectories that were finished" in capsys.readouterr().out


def test_nothing_finished_means_no_data_set(play, tmp_path):
    with pytest.raises(SafetyStop):
        play(FakeRobot(readings={5: Reading(np.zeros(3), contact=True)}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_keeps_what_is_finished(play, tmp_path, number):
    robot = FakeRobot(on_step=lambda step: step == 60 and os.kill(os.getpid(), number))
    before = signal.signal(number, signal.default_int_handler)  # the tests themselves may run under `nohup`
    try:
        with pytest.raises(KeyboardInterrupt):
            play(robot)
    finally:
        signal.signal(number, before)
    assert robot.calls[-2:] == ["stop", "close"] and len(robot.actions) == 60
    assert len(episodes(tmp_path / "play")) == robot.calls.count("stop") - 1 >= 1


class SlowToStop(FakeRobot):
    """Interrupted while it is told to stop for the second time, `signals` times."""

    def __init__(self, signals=1, **options):
        super().__init__(**options)
        self.stopped, self._signals = 0, signals

    def stop(self):
        super().stop()
        if self.calls.count("stop") == 2:
            for number in (signal.SIGINT, signal.SIGTERM)[: self._signals]:
                os.kill(os.getpid(), number)
        self.stopped += 1  # what would not be reached


def test_an_interrupt_while_the_robot_is_told_to_stop_waits_for_it(play, tmp_path):
    robot = SlowToStop(signals=2)
    with pytest.raises(KeyboardInterrupt, match="the recording was interrupted"):
        play(robot)
    assert robot.stopped == robot.calls.count("stop") == 2 and robot.calls[-1] == "close"
    assert len(episodes(tmp_path / "play")) == 1


def test_a_limit_is_told_also_where_an_interrupt_comes_while_the_robot_is_told_to_stop(play, tmp_path):
    robot = SlowToStop(readings={60: Reading(np.array([0.0, 20.0, 0.0]), contact=True)})
    with pytest.raises(SafetyStop, match="reports contact"):
        play(robot, length=40)
    assert robot.stopped == robot.calls.count("stop") == 2 and robot.calls[-1] == "close"
    assert len(episodes(tmp_path / "play")) == 1


def test_a_second_interrupt_does_not_end_what_the_first_has_set_going(play):
    robot = SlowToStop(on_step=lambda step: step == 60 and os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        play(robot, length=40)
    assert robot.stopped == robot.calls.count("stop") == 2


def test_a_trajectory_by_itself_leaves_signals_to_whoever_gets_them():
    """As in a benchmark or a training, which save what they have when they are told to end."""
    robot, got = FakeRobot(on_step=lambda step: step == 3 and os.kill(os.getpid(), signal.SIGTERM)), []
    stop = robot.stop

    def interrupted():
        os.kill(os.getpid(), signal.SIGTERM)
        stop()

    def note(number, frame):
        got.append(list(robot.calls))

    robot.stop = interrupted
    before = signal.signal(signal.SIGTERM, note)
    try:
        recorder = PlayRecorder(robot, Guard(DESCRIPTION), NoPace(20.0))
        assert len(recorder.trajectory(RandomMotion(AXES, 20.0, np.random.default_rng(0)), 5)) == 5
    finally:
        assert signal.signal(signal.SIGTERM, before) is note
    assert len(got) == 2 and got[0] == ["act"] * 3 and got[1][-1] == "stop"


def test_a_lost_terminal_stays_ignored_where_it_was(play, tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # `nohup`
    try:
        play(FakeRobot(on_step=lambda step: step == 60 and os.kill(os.getpid(), signal.SIGHUP)))
    finally:
        assert signal.signal(signal.SIGHUP, before) is signal.SIG_IGN
    assert len(episodes(tmp_path / "play")) == 3


def test_an_interrupt_while_a_trajectory_is_written_waits_for_it(play, tmp_path, monkeypatch):
    add = LeRobotWriter.add_episode

    def interrupted(writer, episode):
        if len(writer) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return add(writer, episode)

    monkeypatch.setattr(LeRobotWriter, "add_episode", interrupted)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        play(FakeRobot())
    assert len(episodes(tmp_path / "play")) == 2
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_robot_that_breaks_is_stopped_and_what_is_finished_kept(play, tmp_path):
    def broken(step):
        if step == 60:
            raise OSError("the camera is gone")

    robot = FakeRobot(on_step=broken)
    with pytest.raises(OSError, match="the camera is gone"):
        play(robot)
    assert robot.calls[-2:] == ["stop", "close"] and len(episodes(tmp_path / "play")) >= 1


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        ({"observation.images.scene": np.zeros((8, 8, 3))}, "must be uint8"),
        ({"observation.state": np.zeros(3)}, "must be 2 finite numbers"),
        ({"observation.state": np.array([0.0, np.inf])}, "must be 2 finite numbers"),
        ({"scene": np.zeros((8, 8, 3), np.uint8)}, "it gave observation.images.scene, observation.state, scene"),
    ],
)
def test_observations_that_cannot_be_recorded_are_refused(seen, words):
    robot = FakeRobot()
    good = robot.observe()
    robot.observe = lambda: good | seen
    recorder = PlayRecorder(robot, Guard(DESCRIPTION), NoPace(20.0))
    with pytest.raises(ValueError, match=words):
        recorder.trajectory(RandomMotion(AXES, 20.0, np.random.default_rng(0)), 5)
    assert robot.calls == ["stop"]


def test_cameras_must_not_change_in_the_middle():
    robot = FakeRobot()
    first = robot.observe()
    pictures = iter([first, first | {"observation.images.scene": np.zeros((4, 4, 3), np.uint8)}])
    robot.observe = lambda: next(pictures)
    recorder = PlayRecorder(robot, Guard(DESCRIPTION), NoPace(20.0))
    with pytest.raises(ValueError, match="changed their shapes"):
        recorder.trajectory(RandomMotion(AXES, 20.0, np.random.default_rng(0)), 5)


def test_the_workspace_bounds_the_motion(play):
    states = episodes(play(FakeRobot(box=Box((-0.2, -1, -1), (0.2, 1, 1))), length=60))
    lift = np.concatenate([episode.state[:, 0] for episode in states])
    assert lift.min() >= -0.2 and lift.max() <= 0.2 and np.ptp(lift) > 0.2


@pytest.mark.parametrize("motion", ["waypoints", "babble"])
def test_a_robot_that_starts_a_little_outside_of_its_workspace_plays_within_it(play, motion):
    robot = FakeRobot(box=Box((-0.2, -1, -1), (0.2, 1, 1)))
    robot.position[0] = 0.215
    lift = np.concatenate([e.state[:, 0] for e in episodes(play(robot, length=60, motion=motion))])
    outside = lift[lift > 0.2]
    assert len(outside) < 20 and (np.diff(outside) <= 0).all()  # it comes back, and not by a detour
    assert lift.min() >= -0.2 and np.ptp(lift) > 0.2


def test_a_robot_that_no_way_leads_back_from_is_an_error_and_no_play(play, tmp_path):
    robot = FakeRobot(box=Box((-0.2, -1, -1), (0.2, 1, 1)))
    # Wherever the axes are, the tip is said to be as far outside.
    robot.description = replace(robot.description, tip_of=lambda position: np.array([0.21, 0.0, 0.0]))
    with pytest.raises(SafetyStop, match="nothing moved in 20 steps, since every way would have led out of"):
        play(robot)
    assert len(robot.actions) == 20 and np.ptp(np.array(robot.actions)[:, 0]) == 0
    assert robot.calls[-2:] == ["stop", "close"] and list(tmp_path.iterdir()) == []


def test_a_late_step_is_counted_and_not_caught_up_with():
    now, slept = [0.0], []

    def sleep(seconds):
        slept.append(seconds)
        now[0] += seconds

    pace = Pace(20.0, lambda: now[0], sleep)
    pace.begin()
    for work in (0.01, 0.08, 0.01, 0.05):
        now[0] += work
        pace.wait()
    assert np.allclose(slept, [0.04, 0.04, 0.0])
    assert (pace.late, pace.steps) == (1, 4) and pace.worst == pytest.approx(0.03)
    assert pace.report() == "1 of 4 steps late (25.0%), the worst by 30 ms"
    assert Pace(20.0).report() == "all 0 steps in time"
