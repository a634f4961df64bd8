"""Experts succeed on every robot that a task is offered for, also when disturbed, and on robosuite's own Lift."""

import json
from pathlib import Path

import numpy as np
import pytest

from selfalign.commands.experts import ExpertsConfig, run
from selfalign.sim.bodies import BodySpec
from selfalign.sim.engine import Simulation
from selfalign.sim.experts import LiftExpert, Noise, evaluate
from selfalign.sim.record import Recorder
from selfalign.sim.robots import ROBOTS
from selfalign.sim.tasks import KINDS, Task, offered

OFFERED = [(name, kind) for name in ROBOTS for kind in KINDS if offered(kind, ROBOTS[name].arm, ROBOTS[name].gripper)]
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "experts.json"


@pytest.mark.parametrize("name", ["panda", "ur5e_panda", "iiwa", "kinova3", "xarm7", "jaco"])
def test_experts_succeed(name):
    sim = Simulation(ROBOTS[name])
    for kind in KINDS:
        assert evaluate(ROBOTS[name], kind, 2, seed=100, sim=sim).successes == 2


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), OFFERED)
def test_experts_succeed_in_95_of_100_episodes(name, kind):
    assert evaluate(ROBOTS[name], kind, 100, seed=1).successes >= 95


@pytest.mark.parametrize(("name", "kind"), OFFERED)
def test_what_is_offered_was_measured(name, kind):
    rows = {(row["robot"], row["task"]): row for row in json.loads(RESULTS.read_text())["rows"]}
    row = rows[ROBOTS[name].name, kind]
    assert row["episodes"] >= 100 and row["successes"] >= 0.95 * row["episodes"]


def test_the_command_writes_what_it_measures_and_where_from(tmp_path, monkeypatch):
    monkeypatch.setattr("selfalign.commands.experts.ROBOTS", {"panda": ROBOTS["panda"]})
    run(ExpertsConfig(episodes=2, out=tmp_path / "experts.json", seed=3))
    written = json.loads((tmp_path / "experts.json").read_text())
    assert [(row["robot"], row["task"]) for row in written["rows"]] == [("panda_panda", kind) for kind in KINDS]
    for row in written["rows"]:
        assert row["successes"] == evaluate(ROBOTS["panda"], row["task"], 2, seed=3).successes
        assert row["interval"]["low"] <= row["rate"] <= row["interval"]["high"] and row["seed"] == 3
    assert {"command", "commit", "machine"} <= written["provenance"].keys()


@pytest.mark.parametrize("kind", KINDS)
def test_disturbed_experts_recover(kind):
    recorder, successes = Recorder(BodySpec(), image_size=16), 0
    for seed in range(3):
        rng = np.random.default_rng(seed)
        episode = recorder.demonstrate(rng, (kind,), noise=1.0)
        successes += Task.parse(episode.task).kind == kind and len(episode) < Task.parse(episode.task).steps
    assert successes >= 2


def test_noise_changes_what_is_executed_and_never_the_gripper():
    noise, label = Noise(np.random.default_rng(0)), np.array([0.5, 0.0, -0.5, 1.0])
    executed = np.array([noise(label) for _ in range(500)])
    changed = np.any(executed[:, :3] != label[:3], axis=1)
    assert 0.05 < changed.mean() < 0.5
    assert np.abs(executed).max() <= 1.0 and np.all(executed[:, 3] == 1.0)
    # Disturbances last: a disturbed step is followed by another more often than a quiet one is.
    assert changed[1:][changed[:-1]].mean() > 2 * changed[1:][~changed[:-1]].mean()


class _RobosuiteTable:
    """robosuite's Lift as the world that our expert knows: the origin on the table below, x forward, y left."""

    def __init__(self, env, origin):
        self.env, self.origin = env, origin

    @property
    def tip(self):
        return self.env.sim.data.site_xpos[self.env.robots[0].eef_site_id["right"]] - self.origin

    @property
    def gripper_opening(self):
        fingers = self.env.sim.data.qpos[self.env.robots[0]._ref_gripper_joint_pos_indexes["right"]]
        return float(np.clip(np.abs(fingers).mean() / 0.04, 0.0, 1.0))

    def cube_position(self, colour):
        return self.env.sim.data.body_xpos[self.env.cube_body_id] - self.origin


@pytest.mark.slow
def test_the_lift_expert_solves_robosuites_lift():
    robosuite = pytest.importorskip("robosuite")
    controller = robosuite.load_composite_controller_config(controller="BASIC")
    env = robosuite.make(
        "Lift",
        robots="Panda",
        controller_configs=controller,
        has_renderer=False,
        has_offscreen_renderer=False,
        use_camera_obs=False,
        control_freq=20,
        horizon=200,
        seed=0,
    )
    largest = env.robots[0].composite_controller.part_controllers["right"].output_max[:3]
    solved = 0
    for _ in range(5):
        env.reset()
        world = _RobosuiteTable(env, np.array([0.0, 0.0, env.model.mujoco_arena.table_offset[2]]))
        expert, done = LiftExpert(Task("lift", "red"), world.cube_position("red")), False
        for _ in range(150):
            action = expert(world)
            # Ours is 3 cm for a 1; robosuite's operational-space controller takes its own largest step for a 1.
            env.step(np.concatenate([np.clip(action[:3] * 0.03 / largest, -1, 1), np.zeros(3), action[3:]]))
            done = done or bool(env._check_success())
        solved += done
    env.close()
    assert solved >= 4
