"""`selfalign play --robot`: the example in the documentation, mistakes of the caller, and a simulated body."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from selfalign.cli import main
from selfalign.data.lerobot import LeRobotReader
from selfalign.robots.motion import RandomMotion
from selfalign.robots.pace import NoPace
from selfalign.robots.record import PlayRecorder
from selfalign.robots.safety import Guard
from selfalign.robots.session import load_robot
from selfalign.sim.bodies import BodySpec, sample_bodies
from selfalign.sim.engine import WORKSPACE_HIGH, WORKSPACE_LOW, Simulation
from selfalign.sim.playing import SimulatedRobot, play_by_axes
from selfalign.sim.record import record_play

EXAMPLE = Path(__file__).parents[2] / "examples" / "my_robot.py"


def test_the_example_plays_in_real_time(tmp_path, capsys):
    out = tmp_path / "play"
    args = ["play", "--robot", f"{EXAMPLE}:make", "--out", out, "--trajectories", 2, "--length", 10, "--delay", 0]
    assert main([str(arg) for arg in args]) == 0
    told = capsys.readouterr().out
    assert "shoulder: 0.4 to 1.4, at most 0.8 a second" in told and "gripper: either 0 or 1, at once" in told
    assert "control: " in told and "2 trajectories of my_robot in" in told
    reader = LeRobotReader(out)
    assert len(reader) == 2 and reader.info.features["action"].names == ["shoulder", "elbow", "gripper"]


BROKEN = "def make(): return object()\nclass Half:\n    def observe(self): ...\n"


@pytest.mark.parametrize(
    ("robot", "words"),
    [
        ("nowhere.py:make", "no robot file at nowhere.py"),
        ("broken.py", "name the function that makes the robot, as in my_robot.py:make"),
        ("broken.py:made", "has no function 'made'"),
        ("broken.py:make", "lacks observe, measure, act, stop, close; see docs/play.md"),
        ("broken.py:Half", "lacks measure, act, stop, close"),
        ("no_such_package_here:make", "No module named 'no_such_package_here'"),
    ],
)
def test_mistakes_end_with_a_line(tmp_path, capsys, monkeypatch, robot, words):
    monkeypatch.chdir(tmp_path)
    Path("broken.py").write_text(BROKEN)
    assert main(["play", "--robot", robot, "--out", "play"]) == 2
    error = capsys.readouterr().err
    assert words in error and error.startswith("selfalign: ") and error.count("\n") == 1
    assert not Path("play").exists()


def test_a_place_that_is_taken_is_noticed_before_anything_moves(tmp_path, capsys):
    (tmp_path / "play").mkdir()
    (tmp_path / "play" / "old.txt").write_text("mine")
    (tmp_path / "arm.py").write_text("def make(): raise SystemExit('it was connected')\n")
    assert main(["play", "--robot", f"{tmp_path / 'arm.py'}:make", "--out", str(tmp_path / "play")]) == 2
    assert "play exists already; choose another place" in capsys.readouterr().err
    assert (tmp_path / "play" / "old.txt").read_text() == "mine"


def test_parts_beyond_all_limits_are_refused(tmp_path, capsys):
    args = ["play", "--robot", f"{EXAMPLE}:make", "--out", str(tmp_path / "play"), "--delay", "0"]
    assert main([*args, "--speed", "2"]) == 2
    assert "in (0, 1]; got 1.0 and 2.0" in capsys.readouterr().err


def test_a_module_of_this_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "arm_of_mine.py").write_text(EXAMPLE.read_text())
    assert load_robot("arm_of_mine:make").description.name == "my_robot"


@pytest.fixture(scope="module")
def panda():
    with Simulation("panda") as sim:
        yield sim


@pytest.mark.parametrize("scenario", ["action", "joint"])
@pytest.mark.parametrize("kind", ["waypoints", "babble"])
def test_simulated_bodies_do_what_their_play_says(panda, scenario, kind):
    robot = SimulatedRobot(sample_bodies(1, 0, "heldout", scenario)[0], 16, sim=panda)
    executed, execute = [], robot.act

    def act(action):
        before = robot._controller.tip_target, robot._controller.joint_target
        execute(action)
        after = robot._controller.tip_target, robot._controller.joint_target
        executed.append([b - a for a, b in zip(before, after, strict=True)])

    robot.act = act
    description = robot.description
    guard = Guard(description)
    motion = RandomMotion(description.axes, description.hz, np.random.default_rng(0), kind, guard.allows)
    episode = PlayRecorder(robot, guard, NoPace(20.0)).trajectory(motion, 40)
    tip, joints = (np.array(x) for x in zip(*executed[:40], strict=True))
    canonical = robot.body.action_space.to_canonical(episode.action.astype(float))[:, :-1]
    moved = joints / 0.1 if robot.body.action_space.is_joint else tip / 0.03
    assert np.abs(moved).max() > 0.1  # it moves
    assert np.allclose(canonical, moved, atol=1e-5)  # no limit of the simulator's own changed what was recorded
    assert episode.state.shape == (40, robot.body.state_dim) and set(episode.images) == {"scene", "wrist"}
    assert np.all(panda.tip > WORKSPACE_LOW - 0.02) and np.all(panda.tip < WORKSPACE_HIGH + 0.02)


def test_play_of_a_simulated_body_is_that_of_its_recorder(tmp_path, panda):
    body = sample_bodies(1, 4, "heldout", "camera")[0]
    args = ["--seed", "4", "--trajectories", "1", "--length", "6", "--image-size", "16"]
    assert main(["play", "--scenario", "camera", "--out", str(tmp_path / "play"), *args]) == 0
    reader, expected = LeRobotReader(tmp_path / "play"), record_play(body, 1, 6, 4, image_size=16, sim=panda)[0]
    found = reader[0]
    assert np.array_equal(found.action, expected.action) and np.array_equal(found.state, expected.state)
    assert all(np.array_equal(found.images[name], expected.images[name]) for name in ("scene", "wrist"))
    assert BodySpec.from_dict(reader.embodiments[0]) == body


def test_robot_play_is_what_the_command_writes_of_a_real_robot(tmp_path, panda):
    out, robot = tmp_path / "play", "selfalign.sim.playing:panda"
    assert main(["play", "--robot", robot, "--out", str(out), "--trajectories", "2", "--length", "6"]) == 0
    reader, found = LeRobotReader(out), list(play_by_axes(BodySpec(), 2, 6, sim=panda))
    for written, played in zip([reader[0], reader[1]], found, strict=True):
        assert np.array_equal(written.action, played.action) and np.array_equal(written.state, played.state)
        assert all(np.array_equal(written.images[name], played.images[name]) for name in ("scene", "wrist"))
    less = next(play_by_axes(BodySpec(), 1, 6, sim=panda))
    assert np.array_equal(less.action, found[0].action)
    other = next(play_by_axes(BodySpec(), 1, 6, 1, sim=panda))
    assert not np.array_equal(other.action, less.action)


def test_robot_play_moves_the_numbers_of_its_actions_one_by_one(panda):
    """Which play that leads the tip about the workspace does not do in a frame that is turned."""
    body = sample_bodies(1, 0, "heldout", "action")[0]
    alone = []
    for play in (play_by_axes, record_play):
        _, babbled = play(body, 2, 40, image_size=8, sim=panda)
        moving = np.abs(babbled.action[:, :3]) > 1e-4
        alone.append(float((moving.sum(axis=1) == 1).mean()))
    assert alone[0] > 0.1 and alone[1] == 0.0


def test_the_brisk_tempo_is_faster_within_the_same_limits(tmp_path, panda):
    def speeds(episodes):
        return np.abs(np.concatenate([episode.action[:, :3] for episode in episodes]))

    out, robot, amount = tmp_path / "play", "selfalign.sim.playing:panda", ["--trajectories", "4", "--length", "60"]
    assert main(["play", "--robot", robot, "--out", str(out), "--image-size", "8", "--tempo", "brisk", *amount]) == 0
    reader = LeRobotReader(out)
    brisk = speeds(reader[i] for i in range(4))
    calm, full = (
        speeds(play_by_axes(BodySpec(), 4, 60, image_size=8, sim=panda, brisk=brisk)) for brisk in (False, True)
    )
    assert calm.mean() * 1.15 < brisk.mean() < full.mean() / 1.15
    assert max(calm.max(), brisk.max()) <= 0.7 + 1e-6 < full.max() <= 1.0 + 1e-6


def test_a_drawn_body_plays_by_its_axes(tmp_path, panda):
    body = sample_bodies(1, 4, "heldout", "action")[0]
    told = ["--scenario", "action", "--seed", "4", "--trajectories", "2", "--length", "6", "--image-size", "16"]
    for flags, brisk in ((["--axes"], False), (["--axes", "--brisk"], True)):
        out = tmp_path / f"brisk_{brisk}"
        assert main(["play", "--out", str(out), *flags, *told]) == 0
        reader, expected = LeRobotReader(out), play_by_axes(body, 2, 6, 4, image_size=16, sim=panda, brisk=brisk)
        for written, played in zip([reader[0], reader[1]], expected, strict=True):
            assert np.array_equal(written.action, played.action) and np.array_equal(written.state, played.state)


def test_a_tempo_of_axes_that_are_not_moved_is_refused(tmp_path, capsys):
    assert main(["play", "--out", str(tmp_path / "play"), "--brisk"]) == 2
    assert "give --axes too" in capsys.readouterr().err and not (tmp_path / "play").exists()


def test_an_interrupted_recording_does_not_promise_to_go_on(tmp_path, panda, capsys, monkeypatch):
    looks = iter(range(100))
    observe = SimulatedRobot.observe

    def interrupted(robot):
        if next(looks) == 8:
            os.kill(os.getpid(), signal.SIGINT)
        return observe(robot)

    monkeypatch.setattr(SimulatedRobot, "observe", interrupted)
    args = ["--robot", "selfalign.sim.playing:panda", "--out", str(tmp_path / "play"), "--length", "6"]
    assert main(["play", *args]) == 130
    told = capsys.readouterr()
    assert "holds the 1 trajectories that were finished" in told.out
    assert told.err.strip().endswith("selfalign: the recording was interrupted")
