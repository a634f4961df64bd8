"""Pictures show the scene from where the camera is said to stand."""

import os
import subprocess
import sys

import numpy as np
import pytest

import selfalign.sim.render as render_module
from selfalign.sim.appearance import Appearance
from selfalign.sim.engine import Simulation
from selfalign.sim.prepare import VISUAL_GROUP
from selfalign.sim.render import CameraPose, WristMount

CAMERAS = [
    CameraPose(azimuth=0.0, elevation=40.0),
    CameraPose(azimuth=70.0, elevation=25.0, distance=0.9),
    CameraPose(azimuth=-110.0, elevation=60.0, distance=1.1, lookat=(0.05, -0.02, 0.1), fovy=35.0),
]
CUBES = {"red": (0.10, 0.12, 0.4), "blue": (-0.12, -0.13, 0.0)}


@pytest.fixture(scope="module")
def sim():
    with Simulation("panda") as simulation:
        yield simulation


@pytest.fixture(autouse=True)
def scene(sim: Simulation) -> None:
    sim.set_appearance(Appearance())
    sim.reset(np.array([-0.05, 0.0, 0.28]), CUBES)


def pixels_of(image: np.ndarray, channel: int) -> np.ndarray:
    """(u, v) in [0, 1] of the pixels in which one channel outshines the others by far."""
    others = np.delete(image.astype(int), channel, axis=2).max(axis=2)
    rows, columns = np.nonzero(image[..., channel] > others + 60)
    return np.stack([columns + 0.5, rows + 0.5], axis=1) / len(image)


@pytest.mark.parametrize("camera", CAMERAS)
def test_cubes_appear_where_they_are_projected(sim: Simulation, camera: CameraPose) -> None:
    image = sim.render(camera, 256)
    for colour, channel in (("red", 0), ("blue", 2)):
        seen = pixels_of(image, channel)
        assert len(seen) > 60
        np.testing.assert_allclose(seen.mean(axis=0), camera.project(sim.cube_position(colour)), atol=3 / 256)


def test_projection_has_its_conventions() -> None:
    camera = CameraPose(azimuth=0.0, elevation=30.0, distance=1.0, lookat=(0.0, 0.0, 0.0), fovy=90.0)
    np.testing.assert_allclose(camera.position, [np.cos(np.pi / 6), 0.0, 0.5], atol=1e-12)
    np.testing.assert_allclose(camera.project(np.zeros(3)), [0.5, 0.5])
    # Seen from in front of the robot its left is on the right; above is up, which is a smaller v.
    left, above = camera.project(np.array([[0.0, 0.1, 0.0], [0.0, 0.0, 0.1]]))
    assert left[0] > 0.5 and left[1] == pytest.approx(0.5)
    assert above[0] == pytest.approx(0.5) and above[1] < 0.5
    # With a field of view of 90 degrees a point as far to the side as in front is at the edge.
    assert camera.project(np.array([0.0, 1.0, 0.0]))[0] == pytest.approx(1.0)
    assert np.isnan(camera.project(2.0 * camera.position)).all()


def test_a_pose_survives_json() -> None:
    camera = CAMERAS[2]
    assert CameraPose.from_dict(camera.to_dict()) == camera


def test_a_moved_camera_sees_something_else(sim: Simulation) -> None:
    views = [sim.render(camera, 64).astype(int) for camera in CAMERAS]
    for first in range(3):
        assert np.array_equal(views[first], sim.render(CAMERAS[first], 64))
        for second in range(first):
            assert np.abs(views[first] - views[second]).mean() > 5


def test_a_cube_covers_five_pixels_of_a_small_picture(sim: Simulation) -> None:
    seen = pixels_of(sim.render(CameraPose(), 64), 0) * 64
    assert np.ptp(seen[:, 0]) + 1 >= 5 and np.ptp(seen[:, 1]) + 1 >= 5


def test_the_wrist_camera_moves_with_the_gripper(sim: Simulation) -> None:
    above_red = np.array([CUBES["red"][0], CUBES["red"][1], 0.15])
    sim.reset(above_red, CUBES)
    seen = pixels_of(sim.render("wrist", 128), 0)
    assert len(seen) > 100 and 0.3 < seen[:, 0].mean() < 0.7
    sim.reset(np.array([-0.15, -0.15, 0.15]), CUBES)
    assert len(pixels_of(sim.render("wrist", 128), 0)) == 0


def test_cubes_that_are_not_there_are_not_seen(sim: Simulation) -> None:
    sim.reset(np.array([0.0, 0.0, 0.28]), {"blue": (0.1, 0.1, 0.0)})
    image = sim.render(CAMERAS[0], 128)
    assert len(pixels_of(image, 0)) == 0 and len(pixels_of(image, 2)) > 20


def test_the_size_is_checked(sim: Simulation) -> None:
    with pytest.raises(ValueError, match="cannot render 4096 px: this renderer makes 1 to 256 px"):
        sim.render(CAMERAS[0], 4096)


# --- appearance


def test_appearances_are_seeded_and_undone(sim: Simulation) -> None:
    plain = sim.render(CAMERAS[1], 96)
    looks = []
    for seed in (3, 4, 3):
        sim.set_appearance(Appearance(seed, shapes=True))
        looks.append(sim.render(CAMERAS[1], 96))
    assert np.array_equal(looks[0], looks[2])
    assert np.abs(looks[0].astype(int) - looks[1]).mean() > 10
    sim.set_appearance(Appearance())
    assert np.array_equal(sim.render(CAMERAS[1], 96), plain)


def test_cubes_keep_their_names_in_every_light(sim: Simulation) -> None:
    cubes = {"red": (0.1, 0.13, 0.0), "green": (0.1, -0.13, 0.0), "blue": (0.1, 0.04, 0.0), "yellow": (0.1, -0.04, 0.0)}
    sim.reset(np.array([-0.15, 0.0, 0.30]), cubes)
    camera = CameraPose(azimuth=0.0, elevation=50.0, distance=0.9)
    brightest = {"red": {0}, "green": {1}, "blue": {2}, "yellow": {0, 1}}
    for seed in range(12):
        sim.set_appearance(Appearance(seed))
        image = sim.render(camera, 128).astype(int)
        for colour, channels in brightest.items():
            column, row = (camera.project(sim.cube_position(colour)) * 128).astype(int)
            pixel = image[row, column]
            assert min(pixel[list(channels)]) > 1.25 * max(np.delete(pixel, list(channels)), default=0), (seed, colour)


def test_disguises_change_the_robot_and_not_the_physics(sim: Simulation) -> None:
    masses = sim.model.body_mass.copy()
    changes = []
    from_afar = CameraPose(azimuth=70.0, elevation=25.0, distance=2.0, lookat=(0.0, 0.0, 0.4))
    for seed in range(8):
        sim.set_appearance(Appearance(seed))
        plain = sim.render(from_afar, 96).astype(int)
        sim.set_appearance(Appearance(seed, shapes=True))
        changes.append(np.abs(sim.render(from_afar, 96) - plain).mean())
    assert np.mean(changes) > 1
    sim.command_tip(np.array([-0.05, 0.0, 0.28]), -1.0)
    assert sim.data.ncon == 8  # two cubes on four corners each, nothing else touches
    np.testing.assert_array_equal(sim.model.body_mass, masses)


# --- the camera on the hand


@pytest.mark.parametrize("bearing", [-30.0, 0.0, 30.0])
def test_the_wrist_camera_looks_at_the_tip_from_its_bearing(sim: Simulation, bearing: float) -> None:
    mount = WristMount(bearing=bearing, elevation=40.0, distance=0.17, fovy=75.0)
    sim.mount_wrist(mount)
    view, tip = sim.wrist_view, sim.tip
    np.testing.assert_allclose(view.project(tip), [0.5, 0.5], atol=1e-6)
    away = view.position - tip
    assert np.linalg.norm(away) == pytest.approx(0.17)
    # The tool is vertical and the robot's left is +y: bearing 0 is on the far side, +x.
    assert np.degrees(np.arctan2(away[1], away[0])) == pytest.approx(bearing, abs=1.0)
    assert np.degrees(np.arcsin(away[2] / 0.17)) == pytest.approx(40.0, abs=1.0)
    above, left = view.project(tip + [0, 0, 0.02]), view.project(tip + [0, 0.02, 0])
    assert above[1] < 0.5 and left[0] > 0.5  # upright; it looks back at the robot, whose left is on its right


def test_the_wrist_camera_sees_a_cube_where_its_view_says(sim: Simulation) -> None:
    sim.reset(np.array([0.0, 0.0, 0.12]), {"red": (0.05, 0.02, 0.0)})
    for bearing in (-25.0, 25.0):
        sim.mount_wrist(WristMount(bearing))
        image = sim.render("wrist", 128).astype(int)
        red = (image[..., 0] > 2 * image[..., 1]) & (image[..., 0] > 2 * image[..., 2])
        seen = np.argwhere(red).mean(0)[::-1] / 128
        np.testing.assert_allclose(sim.wrist_view.project(sim.cube_position("red")), seen, atol=0.03)
    sim.mount_wrist(WristMount())


def test_no_disguise_hides_the_gripper(sim: Simulation) -> None:
    hand = [i for i in range(sim.model.ngeom) if sim.model.geom(i).name.startswith("gripper0_")]
    hand = [i for i in hand if sim.model.geom_group[i] == VISUAL_GROUP]
    for seed in range(5):
        sim.set_appearance(Appearance(seed))
        undisguised = sim.model.geom_rgba[:, 3].copy()
        sim.set_appearance(Appearance(seed, shapes=True))
        np.testing.assert_array_equal(sim.model.geom_rgba[hand, 3], undisguised[hand])
        assert (sim.model.geom_rgba[:, 3] != undisguised).any()
    assert hand and undisguised[hand].all()


# --- the backend


def test_where_nothing_works_the_error_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    with pytest.raises(RuntimeError, match=r"apt-get install libegl1.*apt-get install libosmesa6"):
        render_module.open_context(8, 8)


def test_osmesa_stands_in_where_egl_finds_no_device() -> None:
    code = (
        "import numpy as np, os\n"
        "from selfalign.sim.engine import Simulation\n"
        "from selfalign.sim.render import CameraPose, WristMount\n"
        "print(os.environ.get('MUJOCO_GL'))\n"
        "image = Simulation('panda').render(CameraPose(), 64)\n"
        "print(os.environ['MUJOCO_GL'], image.mean() > 20)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    environment["MUJOCO_EGL_DEVICE_ID"] = "99"
    if render_module.ctypes.util.find_library("OSMesa") is None:
        pytest.skip("OSMesa is not installed (apt-get install libosmesa6)")
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.stdout.split() == ["None", "osmesa", "True"], run.stderr
