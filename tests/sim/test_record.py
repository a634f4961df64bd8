"""Recordings: what the columns hold agrees with the simulator, play is blind to objects, shards can be resumed."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from selfalign.data.lerobot import LeRobotReader
from selfalign.data.sources import SourceData
from selfalign.sim import record
from selfalign.sim.bodies import BodySpec, sample_bodies, sample_rigs
from selfalign.sim.claim import alone, claim
from selfalign.sim.control import WORKSPACE_HIGH, WORKSPACE_LOW, Controller
from selfalign.sim.engine import Simulation
from selfalign.sim.record import Recorder, pixel_labels, record_demonstrations, record_play
from selfalign.sim.render import CameraPose, WristMount
from selfalign.sim.sources import SourcePlan, generate_sources
from selfalign.sim.tasks import Task


@pytest.fixture(scope="module")
def panda():
    with Simulation("panda") as sim:
        yield sim


def test_play_of_a_body_holds_nothing_but_its_own_numbers(panda):
    body = sample_bodies(1, 0, "heldout", "action")[0]
    episodes = record_play(body, 3, length=20, seed=1, image_size=32, sim=panda)
    assert [len(episode) for episode in episodes] == [20, 20, 20]
    for episode in episodes:
        assert set(episode.columns()) == {
            *("observation.images.scene", "observation.images.wrist"),
            *("observation.state", "action"),
        }
        assert episode.is_play and episode.task == ""
        assert all(pictures.shape == (20, 32, 32, 3) for pictures in episode.images.values())
        assert episode.state.dtype == episode.action.dtype == np.float32
    again = record_play(body, 1, length=20, seed=1, image_size=32, sim=panda)[0]
    assert np.array_equal(again.action, episodes[0].action)
    assert not np.array_equal(episodes[0].action, episodes[1].action)


def test_play_never_asks_where_objects_are(panda, monkeypatch):
    def forbidden(self, colour):
        raise AssertionError("play looked at an object")

    monkeypatch.setattr(Simulation, "cube_position", forbidden)
    for scenario in ("action", "joint"):
        record_play(sample_bodies(1, 0, "heldout", scenario)[0], 1, length=5, seed=0, image_size=32, sim=panda)


@pytest.mark.parametrize(("n", "length"), [(0, 50), (3, 1)])
def test_play_of_nothing_is_refused(panda, n, length):
    with pytest.raises(ValueError, match=f"at least one trajectory of two frames, got {n} of {length}"):
        record_play(BodySpec(), n, length, sim=panda)


def test_play_covers_the_workspace_smoothly(panda):
    episodes = record_play(BodySpec(), 8, seed=0, image_size=16, sim=panda)
    tips = np.concatenate([episode.state[:, :3] for episode in episodes])
    actions = [episode.action for episode in episodes]
    assert np.all(np.ptp(tips, axis=0) > [0.2, 0.2, 0.15])
    assert np.mean(tips[:, 2] < 0.08) > 0.1  # some of it near the objects
    assert np.all(tips > WORKSPACE_LOW - 0.02) and np.all(tips < WORKSPACE_HIGH + 0.02)
    assert np.abs(np.concatenate(actions)).max() <= 1.0 + 1e-6
    moves = np.concatenate([action[:, :3] for action in actions])
    jumps = np.concatenate([np.diff(action[:, :3], axis=0) for action in actions])
    assert jumps.std() < 0.7 * moves.std()
    grips = np.concatenate([action[:, 3] for action in actions])
    assert {-1.0, 1.0} == set(grips.tolist())


@pytest.mark.parametrize("scenario", ["action", "joint"])
def test_recorded_actions_repeat_the_recorded_motion(panda, scenario):
    """What is written as an action, sent to the body as an action, does what was written as states."""
    body = sample_bodies(1, 2, "heldout", scenario)[0]
    episode = Recorder(body, panda, image_size=16).play(np.random.default_rng(3), length=15)
    wanted = body.state_space.frame.invert(episode.state)[:, :-1]

    if scenario == "joint":  # start in the recorded posture, which the tip alone does not tell
        tip = panda.kinematics.tip(wanted[0])
        panda.reset(tip)
        for _ in range(40):
            panda.command_joints(wanted[0], -1.0)
    else:
        panda.reset(wanted[0])
    controller, moved = Controller(panda), []
    for action in episode.action:
        moved.append(panda.joints if scenario == "joint" else panda.tip)
        body.action_space.execute(controller, action)
    assert np.array(moved) == pytest.approx(wanted, abs=0.03)
    assert np.ptp(wanted, axis=0).max() > 0.1


@pytest.fixture(scope="module")
def rig_play(panda):
    rig = sample_rigs(1, seed=4)[0]
    return rig, Recorder(rig, panda, image_size=32, privileged=True).play(np.random.default_rng(0), length=30)


def test_columns_of_a_rig_agree_with_one_another(rig_play):
    _, episode = rig_play
    extra = episode.extra
    assert set(extra) == {
        "observation.tip",
        "action.tip_target",
        "observation.joints",
        "action.joints",
        "privileged.points",
    }
    assert extra["observation.tip"] == pytest.approx(episode.state[:, :3])
    steps = np.diff(extra["action.tip_target"], axis=0) / 0.03
    assert steps == pytest.approx(episode.action[1:, :3], abs=1e-4)
    assert extra["observation.joints"].shape == extra["action.joints"].shape == (30, 8)
    assert extra["observation.joints"][:, 7] == pytest.approx(episode.state[:, 3])
    assert extra["action.joints"][:, 7] == pytest.approx(episode.action[:, 3])
    # The commanded joints add up to where the arm went, but for the servos' lag.
    travelled = 0.1 * extra["action.joints"][:-1, :7].sum(axis=0)
    assert travelled == pytest.approx(
        np.ptp(extra["observation.joints"][[0, -1], :7], axis=0) * np.sign(travelled), abs=0.12
    )


def test_pixel_labels_are_the_simulators(rig_play, panda):
    rig, episode = rig_play
    labels = episode.extra["privileged.points"]
    assert labels.shape == (30, 7, 4)
    assert 2 <= labels[0, 1:5, 2].sum() <= 3  # two or three cubes, all in view
    # The simulation still stands where the episode's last action has left it.
    expected = pixel_labels(rig.camera, panda.landmarks)
    assert labels[-1, 0, :2] == pytest.approx(expected[0, :2], abs=0.1)
    tip = rig.camera.project(episode.extra["observation.tip"])
    inside = np.all((tip >= 0) & (tip <= 1), axis=1)
    assert np.array_equal(inside, labels[:, 0, 2] == 1.0)
    assert labels[inside, 0, :2] == pytest.approx(tip[inside], abs=1e-5)
    assert np.all(labels[labels[..., 2] == 0.0] == 0.0)


def test_what_is_not_in_the_picture_has_no_label():
    camera = CameraPose(azimuth=20.0)
    points = np.array([[0.05, 0.0, 0.02], [5.0, 0.0, 0.0], [np.nan, 0.0, 0.0]])
    labels = pixel_labels(camera, points)
    np.testing.assert_array_equal(labels[:, 2], [1, 0, 0])
    np.testing.assert_allclose(labels[0, :2], camera.project(points[0]))
    # the pinhole the other way: from pixel and depth back to the point
    half = np.tan(np.radians(camera.fovy / 2)) * labels[0, 3]
    offset = np.array([*(2 * labels[0, :2] - 1) * half, labels[0, 3]])
    np.testing.assert_allclose(camera.position + offset @ camera.axes, points[0], atol=1e-12)
    assert not labels[1:].any()


def test_labels_point_at_cubes_of_their_colour(panda):
    channels = {1: (0,), 2: (1,), 3: (2,), 4: (0, 1)}  # red, green, blue, yellow
    recorder, hits = Recorder(BodySpec(), panda, image_size=96, privileged=True), []  # the plain look
    for seed in range(10):
        episode = recorder.play(np.random.default_rng(seed), length=1)
        picture, labels = episode.images["scene"][0].astype(int), episode.extra["privileged.points"][0]
        for row in np.flatnonzero(labels[1:5, 2]) + 1:
            column, line = (labels[row, :2] * 96).astype(int)
            pixel, bright = picture[line, column], channels[int(row)]
            hits.append(pixel[list(bright)].min() > 1.5 * np.delete(pixel, bright).max())
    # The arm may stand before a cube: labels say nothing of that.
    assert len(hits) > 15 and np.mean(hits) > 0.8


def test_demonstrations_succeed_and_stop_soon_after(panda):
    for episode in record_demonstrations(BodySpec(), 4, seed=0, kinds=("reach",), image_size=16, sim=panda):
        assert Task.parse(episode.task).kind == "reach" and not episode.is_play
        assert record.SETTLING["reach"].steps <= len(episode) <= 50
        assert np.abs(episode.action[-1, :3]).max() < 0.1  # it stays


def test_labels_are_the_experts_even_where_something_else_was_done(panda):
    quiet = Recorder(BodySpec(), panda, image_size=16, privileged=True).demonstrate(np.random.default_rng(1), noise=0.0)
    steps = np.diff(quiet.extra["action.tip_target"], axis=0) / 0.03
    assert steps == pytest.approx(quiet.action[1:, :3], abs=1e-4)
    noisy = Recorder(BodySpec(), panda, image_size=16, privileged=True).demonstrate(np.random.default_rng(1), noise=2.0)
    # Labels shrink with the distance to the target point: an expert's law, noise or not.
    speed = np.linalg.norm(noisy.action[:, :3], axis=1)
    assert speed.max() <= 1.0 + 1e-5
    executed = np.diff(noisy.extra["observation.tip"], axis=0) / 0.03
    assert np.abs(executed - noisy.action[:-1, :3]).max() > 0.3


def test_a_simulation_of_another_robot_is_refused(panda):
    with pytest.raises(ValueError, match=r"panda_panda.*ur5e_panda"):
        Recorder(BodySpec(arm="ur5e"), panda)


def small_plan(**changes) -> SourcePlan:
    rigs = tuple(sample_rigs(3, seed=0, robots=(("panda", "panda"),)))
    return SourcePlan(**{"rigs": rigs, "play_per_rig": 1, "demonstrations_per_rig": 1, "image_size": 16} | changes)


def test_sources_are_recorded_in_shards_and_resumed(tmp_path):
    plan = small_plan(rigs_per_shard=2)
    paths = generate_sources(tmp_path / "sources", plan, workers=0, progress=False)
    assert [path.name for path in paths] == ["shard-000", "shard-001"]
    readers = [LeRobotReader(path) for path in paths]
    assert [len(reader) for reader in readers] == [4, 2]
    indices = [meta.embodiment_index for reader in readers for meta in reader.metadata]
    assert indices == [0, 0, 1, 1, 2, 2]
    for reader in readers:
        assert [body["name"] for body in reader.embodiments] == [rig.name for rig in plan.rigs]
        assert [BodySpec.from_dict(body) for body in reader.embodiments] == list(plan.rigs)
    before = readers[1][0].action

    kept = (paths[0] / "meta" / "info.json").stat().st_mtime_ns
    shutil.rmtree(paths[1])
    (tmp_path / "sources" / ".shard-001.partial-1-abc").mkdir()  # what a killed worker leaves
    assert generate_sources(tmp_path / "sources", plan, workers=0, progress=False) == paths
    assert (paths[0] / "meta" / "info.json").stat().st_mtime_ns == kept
    assert np.array_equal(LeRobotReader(paths[1])[0].action, before)
    assert not list((tmp_path / "sources").glob(".shard*"))

    with pytest.raises(ValueError, match="another plan"):
        generate_sources(tmp_path / "sources", small_plan(rigs_per_shard=2, seed=1), progress=False)
    assert json.loads((tmp_path / "sources" / "plan.json").read_text())["seed"] == 0


def test_one_process_at_a_time_records_into_a_folder(tmp_path):
    plan, out = small_plan(), tmp_path / "sources"
    claim(out, json.dumps(plan.to_dict(), indent=1) + "\n", "shard-*")
    live = out / ".shard-000.partial-1-abc"
    live.mkdir()
    with alone(out), pytest.raises(ValueError, match=r"another process records into .*sources"):
        generate_sources(out, plan, workers=0, progress=False)
    assert live.is_dir(), "what the other one writes"
    code = (
        f"import os; from selfalign.sim.claim import alone; alone(__import__('pathlib').Path({str(out)!r})).__enter__()"
    )
    killed = subprocess.run([sys.executable, "-c", f"{code}; os.kill(os.getpid(), 9)"], check=False)
    assert killed.returncode == -9
    with alone(out):
        pass  # who is killed keeps nobody out


def test_worker_processes_record_the_same_data(tmp_path):
    plan = small_plan(rigs=tuple(sample_rigs(2, seed=0, robots=(("panda", "panda"),))), rigs_per_shard=1)
    here, there = (generate_sources(tmp_path / str(n), plan, workers=n, progress=False) for n in (1, 2))
    for mine, theirs in zip(SourceData.open(here).episodes(), SourceData.open(there).episodes(), strict=True):
        assert mine.task == theirs.task
        assert np.array_equal(mine.action, theirs.action)


def test_a_shard_has_one_robot():
    plan = SourcePlan(tuple(sample_rigs(20, seed=0)), rigs_per_shard=3)
    shards = plan.shards()
    assert sorted(index for shard in shards for index in shard) == list(range(20))
    assert all(len({plan.rigs[index].arm for index in shard}) == 1 for shard in shards)


def test_heldout_bodies_cannot_be_sources():
    for scenario, reason in (("camera", "camera"), ("robot", "arm is ur5e")):
        with pytest.raises(ValueError, match=reason):
            SourcePlan(tuple(sample_bodies(1, 0, "heldout", scenario)))
    (rig,) = sample_rigs(1, seed=0)
    with pytest.raises(ValueError, match="camera on the hand"):
        SourcePlan((replace(rig, wrist=WristMount(bearing=18.0)),))
