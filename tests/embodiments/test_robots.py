"""Every robot reads its own example, undoes its own steps, and agrees with openpi where openpi has it."""

import shutil
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from selfalign import embodiments
from selfalign.embodiments import DeltaActions, aloha, make_bool_mask, so101
from selfalign.sim.robots import ROBOTS as SIMULATED

FILES = {module.__name__.rpartition(".")[2]: module for module in embodiments.modules()}
ROBOTS = {robot.name: robot for module in FILES.values() for robot in module.ROBOTS}
OPENPI = load_file(Path(__file__).parents[1] / "data" / "openpi_units" / "embodiments.safetensors")
CAMERAS = {"base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"}


def raw_of(robot: str) -> dict:
    """The sample that openpi was given."""
    prefix = f"{robot}.in."
    return {key.removeprefix(prefix): value for key, value in OPENPI.items() if key.startswith(prefix)}


def test_the_robots_are_there():
    assert set(FILES) == {"aloha", "droid", "franka", "libero", "simulated", "so101", "ur5e"}
    assert set(embodiments.names()) == set(ROBOTS)
    for name, spec in SIMULATED.items():
        assert len(ROBOTS[f"sim_{name}"].state_names) == 4
        assert len(ROBOTS[f"sim_{name}_joint"].action_names) == spec.num_joints + 1


@pytest.mark.parametrize("file", FILES)
def test_each_reads_its_own_example(file):
    robot, raw = FILES[file].ROBOTS[0], FILES[file].make_example()
    seen = robot.repack(raw)
    images = {key: value for key, value in seen.items() if key.startswith("observation.images.")}
    assert images and {key.removeprefix("observation.images.") for key in images} <= CAMERAS | {"scene", "wrist"}
    assert all(image.dtype == np.uint8 and image.shape[-1] == 3 for image in images.values())
    assert seen["observation.state"].shape == (len(robot.state_names),) and isinstance(seen["task"], str)
    np.testing.assert_array_equal(FILES[file].make_example(0)[next(iter(raw))], raw[next(iter(raw))], err_msg="seeded")
    again = robot.repack(seen)
    assert again.keys() == seen.keys(), "LeRobot's names are understood, too"
    np.testing.assert_array_equal(again["observation.state"], seen["observation.state"])


@pytest.mark.parametrize("name", [name for name in ROBOTS if not name.startswith("sim_")])
def test_each_undoes_its_steps_and_its_names(name):
    robot, rng = ROBOTS[name], np.random.default_rng(0)
    state = rng.uniform(0.05, 0.95, (3, len(robot.state_names)))
    actions = rng.uniform(0.05, 0.95, (3, 5, len(robot.action_names)))
    back = robot.inverse(*robot.forward(state, actions))
    np.testing.assert_allclose(back.state, state, atol=1e-9)
    np.testing.assert_allclose(back.actions, actions, atol=1e-9)
    unpacked = robot.unpack(actions[0, 0])
    assert [len(values) for values in unpacked.values()] == [len(part.names) for part in robot.action]
    np.testing.assert_array_equal(np.concatenate(list(unpacked.values())), actions[0, 0])


@pytest.mark.parametrize(
    "name", ["aloha", "aloha_sim", "droid", "droid_joint_position", "libero", "libero_extra_delta"]
)
def test_numbers_and_pictures_are_openpis(name):
    robot = ROBOTS[name]
    seen = robot.repack(raw_of(name))
    expected = {key.removeprefix(f"{name}.model."): x for key, x in OPENPI.items() if key.startswith(f"{name}.model.")}
    state, actions = robot.forward(seen["observation.state"], seen["action"])
    np.testing.assert_allclose(state, expected.pop("state"), atol=1e-12)
    np.testing.assert_allclose(actions, expected.pop("actions"), atol=1e-12)
    assert {f"observation.images.{camera}" for camera in expected} == {
        k for k in seen if k.startswith("observation.images")
    }
    for camera, picture in expected.items():
        np.testing.assert_array_equal(seen[f"observation.images.{camera}"], picture)
    given = OPENPI[f"{name}.given"][:, : len(robot.action_names)]
    np.testing.assert_allclose(robot.inverse(state, given).actions, OPENPI[f"{name}.back"], atol=1e-12)


@pytest.mark.parametrize("name", ["aloha", "droid_joint_position", "franka_joint", "so101", "ur5e"])
def test_twice_the_speed_is_a_target_twice_as_far_from_the_state(name):
    robot, rng = ROBOTS[name], np.random.default_rng(0)
    state = rng.uniform(0.2, 0.4, len(robot.state_names))
    near = rng.uniform(0.2, 0.4, (3, len(robot.action_names)))
    seen, actions = robot.forward(state, near)
    far = robot.inverse(seen, actions * np.where(robot.displacements, 2.0, 1.0)).actions
    arms = [i for i, action in enumerate(robot.action_names) if "gripper" not in action]
    np.testing.assert_allclose(far[:, arms] - state[arms], 2 * (near - state)[:, arms], atol=1e-9)
    grippers = [i for i in range(len(robot.action_names)) if i not in arms]
    np.testing.assert_allclose(far[:, grippers], near[:, grippers], atol=1e-9)


@pytest.mark.parametrize(
    ("name", "moved"),
    [("franka_cartesian", 6), ("droid", 7), ("libero", 6), ("sim_panda", 3), ("sim_ur5e_panda_joint", 6)],
)
def test_which_numbers_are_displacements(name, moved):
    robot = ROBOTS[name]
    assert robot.displacements == make_bool_mask(moved, moved - len(robot.action_names))


def test_what_nobody_says_is_not_known_and_a_displacement_less_the_state_is_none():
    assert ROBOTS["aloha_sim"].displacements is None
    assert not any(ROBOTS["libero_extra_delta"].displacements), "the state would be multiplied with it"
    listed = replace(ROBOTS["droid"], displaced=None, steps=(DeltaActions([True, False]),))
    assert listed.displacements == make_bool_mask(1, -7)


def test_ur5e_is_openpis_recipe():
    """openpi's example of a UR5e: joints and gripper side by side, the six joints as displacements."""
    robot, raw = ROBOTS["ur5e"], FILES["ur5e"].make_example()
    state = robot.repack(raw)["observation.state"]
    np.testing.assert_array_equal(state, [*raw["joints"], *raw["gripper"]])
    actions = np.arange(14.0).reshape(2, 7)
    np.testing.assert_allclose(robot.forward(state, actions).actions, actions - np.append(state[:6], 0))


def test_alohas_gripper_is_interbotixs_linkage():
    """The finger moves on the far side of a triangle of horn and arm: law of cosines, in the other direction."""
    opening = np.linspace(0, 1, 20)
    angle = aloha.gripper_to_angle(opening) * (1.6296 - 0.5476) + 0.5476
    horn = 0.022 * np.stack([np.cos(angle), np.sin(angle)])
    finger = horn[1] + np.sqrt(0.036**2 - horn[0] ** 2)  # straight up from the motor, one arm's length from the horn
    np.testing.assert_allclose((finger - 0.01844) / (0.058 - 0.01844), opening, atol=1e-6)
    np.testing.assert_allclose(aloha.gripper_from_angle(aloha.gripper_to_angle(opening)), opening, atol=1e-6)


def test_a_bare_number_may_be_a_gripper_also_in_a_batch():
    robot, raw = ROBOTS["droid"], FILES["droid"].make_example()
    whole = robot.repack(raw)["observation.state"]
    np.testing.assert_array_equal(
        robot.repack(raw | {"observation/gripper_position": whole[-1]})["observation.state"], whole
    )
    batch = {key: np.stack([value] * 4) for key, value in raw.items() if key != "prompt"} | {
        "prompt": ["a", "b", "c", "d"]
    }
    np.testing.assert_array_equal(robot.repack(batch)["observation.state"], np.stack([whole] * 4))
    batch["observation/gripper_position"] = batch["observation/gripper_position"][:, 0]
    seen = robot.repack(batch)
    np.testing.assert_array_equal(seen["observation.state"], np.stack([whole] * 4))
    assert seen["task"] == ["a", "b", "c", "d"]
    motors = {f"{motor}.pos": np.arange(4.0) for motor in so101.MOTORS}
    front = {"front": np.zeros((4, 8, 8, 3), np.uint8)}
    assert ROBOTS["so101"].repack(motors | front)["observation.state"].shape == (4, 6)


@pytest.mark.parametrize("more", [{"tcp_force": np.zeros(3)}, {"hand": {"rotation": np.eye(3)}}, {"words": ["a"] * 3}])
def test_what_is_no_picture_is_dropped(more):
    raw = FILES["droid"].make_example()
    seen, plain = ROBOTS["droid"].repack(raw | more), ROBOTS["droid"].repack(raw)
    assert seen.keys() == plain.keys()
    np.testing.assert_array_equal(seen["observation.state"], plain["observation.state"])


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("key", ["prompt", "task"])
def test_batches_of_any_size_keep_their_prompts(count, key):
    raw = {name: value for name, value in FILES["droid"].make_example().items() if name != "prompt"}
    prompts = [f"lift cube {i}" for i in range(count)]
    batch = {name: np.stack([value] * count) for name, value in raw.items()} | {key: prompts}
    assert ROBOTS["droid"].repack(batch)["task"] == prompts
    assert ROBOTS["droid"].repack(batch | {key: np.array(prompts)})["task"] == prompts


def test_the_task_may_be_bytes_and_the_state_of_the_robot_is_no_action():
    raw = FILES["so101"].make_example()
    assert "action" not in ROBOTS["so101"].repack(raw)
    assert ROBOTS["so101"].repack(raw | {"task": b"lift"})["task"] == "lift"
    assert ROBOTS["droid"].repack(FILES["droid"].make_example() | {"prompt": np.asarray("lift")})["task"] == "lift"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"observation/joint_position": None}, "droid needs observation/joint_position or joint_position"),
        ({"observation/joint_position": np.zeros(6)}, r"joint_position must have the shape \[7\], got \[6\]"),
        ({"observation/gripper_position": np.zeros(2)}, r"gripper_position must have the shape \[1\], got \[2\]"),
        ({"observation.state": np.zeros(9)}, r"observation.state of droid has 8 dimensions, got shape \[9\]"),
        ({"observation/joint_position": ["a"] * 7}, "must be numbers"),
        ({"cam": np.zeros((8, 8, 3), np.uint8)}, r"pictures that nobody reads: cam; its cameras are base_0_rgb"),
        ({"observation/wrist_image_left": np.zeros((8, 8))}, r"must be a picture \[H, W, 3\] or \[3, H, W\]"),
        ({"observation/wrist_image_left": np.full((8, 8, 3), 7.0)}, r"float in \[0, 1\]; it goes from 7.0 to 7.0"),
        ({"observation/wrist_image_left": np.zeros((8, 8, 3), np.uint16)}, "must be uint8"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    raw = FILES["droid"].make_example() | change
    with pytest.raises(ValueError, match=message):
        ROBOTS["droid"].repack({key: value for key, value in raw.items() if value is not None})


def test_one_camera_must_be_there():
    raw = {key: value for key, value in FILES["droid"].make_example().items() if "image" not in key}
    with pytest.raises(ValueError, match="no picture"):
        ROBOTS["droid"].repack(raw)


def test_cameras_of_data_sets_find_their_place():
    robot = ROBOTS["aloha"]
    for name in ("top", "cam_high", "base_0_rgb"):
        assert robot.pick_cameras([name, "cam_low"]) == {"base_0_rgb": name}
    assert ROBOTS["so101"].pick_cameras(["top", "front"]) == {"base_0_rgb": "front"}, "the first of its keys"
    with pytest.raises(ValueError, match=r"nobody reads: observation\.images\.overhead"):
        robot.pick_cameras(["overhead", "top"])
    overhead = replace(robot, cameras={"base_0_rgb": ("observation.images.overhead",)})
    assert overhead.pick_cameras(["overhead"]) == {"base_0_rgb": "overhead"}


def test_the_robot_of_the_page_works(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "new_robot.md").read_text()
    block = next(part for part in page.split("```python\n") if part.startswith("# my_robot.py")).partition("```")[0]
    (tmp_path / "my_robot.py").write_text(block)
    robot, scope = embodiments.get(tmp_path / "my_robot.py"), {}
    exec(block, scope)
    seen = robot.repack(scope["make_example"]())
    assert seen["observation.state"].shape == (7,) and seen["observation.images.base_0_rgb"].shape == (240, 320, 3)
    named = [name for name in embodiments.names() if not name.startswith("sim_")]
    assert all(f"`{name}`" in page for name in named)


def test_a_robot_of_your_own_is_one_file(tmp_path):
    path = tmp_path / "two_arms.py"
    path.write_text(
        textwrap.dedent("""
        from selfalign.embodiments import Embodiment, Part
        joints = Part(("a", "b"), ("q",))
        left = Embodiment("left", {"base_0_rgb": ("rgb",)}, (joints,), (joints,))
        right = Embodiment("right", {"base_0_rgb": ("rgb",)}, (joints,), (joints,))
        ROBOTS = (left, right)
        """)
    )
    assert embodiments.get(f"{path}:right").name == "right"
    with pytest.raises(ValueError, match=r"choose one as .*two_arms.py:<name> of left, right"):
        embodiments.get(path)
    inside = tmp_path / "my.pyrobots" / ".pyenv"
    inside.mkdir(parents=True)
    shutil.copy(path, inside / "arms.py")
    assert embodiments.get(f"{inside}/arms.py:left").name == "left"
    with pytest.raises(ValueError, match=r"no robot '.*my\.pyrobots'"):
        embodiments.get(tmp_path / "my.pyrobots")
    path.write_text(path.read_text().replace("(left, right)", "(left,)"))
    assert embodiments.get(path).state_names == ("a", "b")
    path.write_text("")
    with pytest.raises(ValueError, match="defines no ROBOTS"):
        embodiments.get(path)
    with pytest.raises(FileNotFoundError, match="no robot file"):
        embodiments.get(tmp_path / "none.py")
    with pytest.raises(ValueError, match=r"no robot 'hal'; there are aloha, .*docs/new_robot.md"):
        embodiments.get("hal")
