"""Robots are composed once, kept whole in the cache, and stay close to the originals."""

import os
from pathlib import Path

import mujoco
import numpy as np
import pytest

import selfalign.sim.prepare as prepare_module
from selfalign.data.cache_dir import cache_dir
from selfalign.sim.engine import Simulation
from selfalign.sim.meshes import Surface, decimate
from selfalign.sim.prepare import CUBE_COLOURS, prepare
from selfalign.sim.robots import ARMS, ROBOTS, RobotSpec

# As the makers' data sheets have it, from the base to the flange.
DEGREES_OF_FREEDOM = {"panda": 7, "ur5e": 6, "iiwa": 7, "kinova3": 7, "xarm7": 7, "jaco": 7, "sawyer": 7}


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_takes_the_panda_gripper(arm: str) -> None:
    robot = RobotSpec(arm)
    assert robot.name == f"{arm}_panda"
    assert robot.num_joints == DEGREES_OF_FREEDOM[arm]
    assert robot in ROBOTS.values()


def test_unknown_names_are_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown arm 'pnada'; known arms: panda, ur5e"):
        RobotSpec("pnada")
    with pytest.raises(ValueError, match="unknown gripper 'hook'; known grippers: panda"):
        RobotSpec("panda", "hook")
    with pytest.raises(ValueError, match="unknown robot 'r2d2'; known: panda"):
        Simulation("r2d2")


@pytest.mark.parametrize("name", ROBOTS)
def test_a_prepared_scene_is_small_and_needs_no_other_file(name: str) -> None:
    path = prepare(ROBOTS[name])
    text = path.read_text()
    assert "file=" not in text and "robosuite" not in text
    model = mujoco.MjModel.from_xml_string(text)
    visible = np.flatnonzero((model.geom_type == mujoco.mjtGeom.mjGEOM_MESH) & (model.geom_group == 2))
    assert 2000 < sum(model.mesh_facenum[model.geom_dataid[geom]] for geom in visible) < 6000
    assert {model.camera(index).name for index in range(model.ncam)} == {"wrist"}
    assert model.nu == ROBOTS[name].num_joints + len(prepare_module.GRIPPERS[ROBOTS[name].gripper].drives)
    for colour in CUBE_COLOURS:
        assert model.body(f"cube_{colour}").mass == pytest.approx(0.05)


def test_a_scene_is_composed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    composed = []

    def compose(robot: RobotSpec) -> str:
        composed.append(robot)
        return "<mujoco/>"

    monkeypatch.setenv("SELFALIGN_CACHE", str(tmp_path))
    monkeypatch.setattr(prepare_module, "compose_scene", compose)
    first, second = prepare(RobotSpec("panda")), prepare(RobotSpec("panda"))
    assert first == second and first.read_text() == "<mujoco/>"
    assert first.is_relative_to(tmp_path) and composed == [RobotSpec("panda")]


def test_an_interrupted_preparation_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def disk_full(source: str, target: str) -> None:
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setenv("SELFALIGN_CACHE", str(tmp_path))
    monkeypatch.setattr(prepare_module, "compose_scene", lambda robot: "<mujoco/>")
    monkeypatch.setattr(os, "replace", disk_full)
    with pytest.raises(OSError, match="No space left"):
        prepare(RobotSpec("panda"))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFALIGN_CACHE", "~/elsewhere")
    assert cache_dir("scenes") == Path.home() / "elsewhere" / "scenes"
    monkeypatch.delenv("SELFALIGN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setattr("sys.platform", "linux")
    assert cache_dir("scenes") == Path("/xdg/selfalign/scenes")


def test_composing_does_not_choose_the_rendering_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """robosuite sets MUJOCO_GL when it is imported, which would take the choice away from our discovery."""
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    with prepare_module._quiet_import():
        os.environ["MUJOCO_GL"] = "egl"
    assert "MUJOCO_GL" not in os.environ


def sphere(rings: int, centre: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Surface:
    """A unit sphere of 10 cm radius, as a soup: no two triangles share a vertex."""
    polar, around = np.linspace(0, np.pi, rings + 1), np.linspace(0, 2 * np.pi, 2 * rings + 1)

    def point(i: int, j: int) -> np.ndarray:
        x, y, z = np.sin(polar[i]) * np.cos(around[j]), np.sin(polar[i]) * np.sin(around[j]), np.cos(polar[i])
        return 0.1 * np.array([x, y, z]) + centre

    corners = []
    for i in range(rings):
        for j in range(2 * rings):
            corners += [point(i, j), point(i + 1, j), point(i + 1, j + 1)]
            corners += [point(i, j), point(i + 1, j + 1), point(i, j + 1)]
    return Surface(np.array(corners), np.arange(len(corners)).reshape(-1, 3), (1.0, 1.0, 1.0, 1.0))


def test_decimation_keeps_a_sphere_round() -> None:
    original = sphere(40)
    vertices, faces = decimate(original, 200)
    assert len(original.faces) == 6400 and 100 < len(faces) <= 296
    radii = np.linalg.norm(vertices.astype(np.float64)[faces].mean(axis=1), axis=1)
    assert radii.min() > 0.092 and radii.max() < 0.104
    area = Surface(vertices.astype(np.float64), faces, original.rgba).area
    assert area == pytest.approx(4 * np.pi * 0.01, rel=0.06)


def test_decimation_keeps_separate_parts() -> None:
    one, other = sphere(20), sphere(20, (0.5, 0.0, 0.0))
    both = Surface(
        np.concatenate([one.vertices, other.vertices]),
        np.concatenate([one.faces, other.faces + len(one.vertices)]),
        one.rgba,
    )
    vertices, faces = decimate(both, 300)
    near_second = vertices[faces].mean(axis=1)[:, 0] > 0.25
    assert 0.35 < near_second.mean() < 0.65
