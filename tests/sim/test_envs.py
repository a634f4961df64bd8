"""The Gymnasium environments: checked by Gymnasium itself, vectorised, repeatable, and in the body's own numbers."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import selfalign.sim.envs  # noqa: F401 (registers the environments)
from selfalign.sim.bodies import ActionSpace, sample_bodies
from selfalign.sim.envs import IMAGE, STATE, TASK, BodyEnv, make_body
from selfalign.sim.experts import make_expert
from selfalign.sim.tasks import Scene, Task

NAMES = ["selfalign/Reach-v0", "selfalign/Push-v0", "selfalign/Lift-v0"]


@pytest.mark.filterwarnings("ignore:.*infinity.*", "ignore:.*symmetric and normalized.*")
@pytest.mark.parametrize("name", NAMES)
def test_gymnasiums_checker_passes(name):
    env = gymnasium.make(name, render_mode="rgb_array", image_size=32)
    check_env(env.unwrapped)
    env.close()


@pytest.mark.filterwarnings("ignore:.*infinity.*", "ignore:.*symmetric and normalized.*")
def test_gymnasiums_checker_passes_for_another_body():
    env = gymnasium.make(
        NAMES[0],
        robot="ur5e_panda",
        action_space="joint_absolute",
        camera={"azimuth": 30.0, "elevation": 35.0},
        appearance_seed=3,
        image_size=32,
    )
    check_env(env.unwrapped, skip_render_check=True)
    assert env.action_space.shape == (7,) and env.observation_space[STATE].shape == (7,)
    env.close()


def test_vectorised_environments_differ_in_their_scenes():
    envs = gymnasium.make_vec(NAMES[0], num_envs=3, image_size=32)
    observation, _ = envs.reset(seed=0)
    assert observation[IMAGE].shape == (3, 32, 32, 3) and observation[STATE].shape == (3, 4)
    assert len(observation[TASK]) == 3 and all(words.startswith("reach the") for words in observation[TASK])
    assert np.ptp(observation[STATE][:, :3], axis=0).min() > 0.0
    _, rewards, terminated, truncated, infos = envs.step(np.zeros((3, 4), np.float32))
    assert rewards.shape == (3,) and not terminated.any() and not truncated.any()
    assert np.all(infos["progress"] < 0)
    envs.close()


@pytest.mark.slow
def test_environments_run_in_processes_of_their_own():
    kwargs = {"context": "spawn", "shared_memory": False}
    envs = gymnasium.make_vec(NAMES[0], num_envs=2, vectorization_mode="async", vector_kwargs=kwargs, image_size=32)
    observation, _ = envs.reset(seed=0)
    assert all(words.startswith("reach the") for words in observation[TASK])
    envs.close()


def run(env: gymnasium.Env, seed: int) -> tuple[list[np.ndarray], float]:
    """An expert's episode in the environment; states and the last reward."""
    observation, info = env.reset(seed=seed)
    world = env.unwrapped.sim
    expert, states, reward, truncated = make_expert(info["scene"].task, world), [observation[STATE]], 0.0, False
    while not truncated:
        observation, reward, _, truncated, _ = env.step(expert(world).astype(np.float32))
        states.append(observation[STATE])
    return states, reward


def test_an_expert_is_rewarded_and_a_seed_repeats_the_episode():
    env = gymnasium.make(NAMES[0], image_size=32)
    first, reward = run(env, seed=5)
    again, _ = run(env, seed=5)
    other, _ = run(env, seed=6)
    env.close()
    assert len(first) == 51 and reward == 1.0
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_doing_nothing_is_not_rewarded_and_ends_in_time():
    env = gymnasium.make(NAMES[2], image_size=32)
    env.reset(seed=0)
    rewards, steps, truncated = 0.0, 0, False
    while not truncated:
        _, reward, terminated, truncated, info = env.step(np.array([0, 0, 0, -1], np.float32))
        rewards, steps = rewards + reward, steps + 1
        assert not terminated
    env.close()
    assert rewards == 0.0 and steps == 80 and info["success"] is False


def test_a_bodys_numbers_are_its_own():
    body = sample_bodies(1, 4, "heldout", "action")[0]
    env = BodyEnv(body, ("reach",), image_size=32)
    scene = Scene(Task("reach", "red"), (0.0, 0.0, 0.15), {"red": (0.08, 0.0, 0.0), "blue": (-0.08, 0.05, 0.3)})
    observation, info = env.reset(seed=0, options={"scene": scene})
    assert info["scene"] is scene and observation[TASK] == "reach the red cube"
    assert body.state_space.frame.invert(observation[STATE])[:3] == pytest.approx(env.sim.tip, abs=1e-6)
    before = env.sim.tip
    # One canonical centimetre-sized step along x, said in the body's own numbers.
    forward = np.append(np.array(body.action_space.frame.matrix) @ [0.5, 0.0, 0.0], -1.0).astype(np.float32)
    assert env.action_space.contains(forward)
    for _ in range(4):
        env.step(forward)
    assert env.sim.tip - before == pytest.approx([0.06, 0.0, 0.0], abs=0.015)
    env.close()


def test_pictures_show_the_scene_from_the_bodys_camera():
    env = BodyEnv(make_body(camera={"azimuth": 60.0}), render_mode="rgb_array", image_size=48, render_size=128)
    env.reset(seed=0)
    assert env.render().shape == (128, 128, 3)
    other = BodyEnv(make_body(camera={"azimuth": -60.0}), image_size=48)
    pictures = [e.reset(seed=0)[0][IMAGE].astype(float) for e in (env, other)]
    assert np.abs(pictures[0] - pictures[1]).mean() > 5.0
    env.close()
    other.close()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"robot": "wally"}, "unknown robot 'wally'"),
        ({"action_space": "telepathy"}, "unknown action kind"),
        ({"robot": "ur5e_robotiq85"}, "not offered for ur5e_robotiq85"),
    ],
)
def test_wrong_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        gymnasium.make(NAMES[1], **kwargs)


def test_actions_outside_of_the_box_still_have_the_bodys_length():
    env = BodyEnv(make_body(action_space=ActionSpace("joint_delta")), image_size=32)
    with pytest.raises(RuntimeError, match="reset"):
        env.step(np.zeros(8))
    env.reset(seed=0)
    with pytest.raises(ValueError, match="takes 8 finite numbers"):
        env.step(np.zeros(4))
    env.close()
