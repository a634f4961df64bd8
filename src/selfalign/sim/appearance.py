"""How a scene looks: seeded colours of every part of robot and table, and seeded lights.

A policy that has only seen white arms takes colour for shape; strong recolouring of the source robots halves the error
with which an unseen arm's tip is found. Cubes keep their names: their hue moves a little only.
"""

import colorsys
from dataclasses import dataclass

import mujoco
import numpy as np
from jaxtyping import Float, Int

from selfalign.sim.prepare import CUBE_COLOURS, DISGUISE_SUFFIX, VISUAL_GROUP


@dataclass(frozen=True)
class Appearance:
    """A look, drawn from `seed`; None is the robots' own colours under plain light."""

    seed: int | None = None
    shapes: bool = False
    """Also disguise some links of the arm as boxes, capsules and cylinders of about their size."""

    def apply(self, model: mujoco.MjModel, original: mujoco.MjModel) -> None:
        """Writes the look into `model`, whose own colours are read from `original`."""
        model.geom_rgba[:] = original.geom_rgba
        model.geom_type[:], model.geom_size[:] = original.geom_type, original.geom_size
        model.light_pos[:], model.light_dir[:] = original.light_pos, original.light_dir
        model.light_diffuse[:] = original.light_diffuse
        model.vis.headlight.ambient[:] = original.vis.headlight.ambient
        model.vis.headlight.diffuse[:] = original.vis.headlight.diffuse
        if self.seed is None:
            return
        rng = np.random.default_rng(self.seed)
        _recolour_robot(model, rng)
        _recolour_scenery(model, rng)
        _recolour_cubes(model, rng)
        _relight(model, rng)
        if self.shapes:
            _disguise(model, rng)


def _any_colour(rng: np.random.Generator) -> Float[np.ndarray, " 3"]:
    """Half greys of any brightness, half colours of any hue."""
    hue, brightness = rng.uniform(), rng.uniform(0.05, 1.0)
    saturation = rng.uniform(0.0, 0.15) if rng.uniform() < 0.5 else rng.uniform(0.15, 0.8)
    return np.array(colorsys.hsv_to_rgb(hue, saturation, brightness))


def _recolour_robot(model: mujoco.MjModel, rng: np.random.Generator) -> None:
    """One base colour for the arm, one for the gripper; each part keeps it, varies it or has its own."""
    for prefix in ("robot0_", "gripper0_"):
        base, accent = _any_colour(rng), _any_colour(rng)
        for geom in np.flatnonzero(model.geom_group == VISUAL_GROUP):
            if not model.geom(geom).name.startswith(prefix):
                continue
            choice = rng.uniform()
            colour = base if choice < 0.5 else accent if choice < 0.75 else _any_colour(rng)
            model.geom_rgba[geom, :3] = np.clip(colour + rng.normal(0.0, 0.05, 3), 0.0, 1.0)


def _recolour_scenery(model: mujoco.MjModel, rng: np.random.Generator) -> None:
    for name in ("table", "floor", "pedestal"):
        hue, saturation, brightness = rng.uniform(), rng.uniform(0.0, 0.35), rng.uniform(0.25, 0.9)
        model.geom_rgba[model.geom(name).id, :3] = colorsys.hsv_to_rgb(hue, saturation, brightness)


def _recolour_cubes(model: mujoco.MjModel, rng: np.random.Generator) -> None:
    for colour, rgb in CUBE_COLOURS.items():
        hue, saturation, brightness = colorsys.rgb_to_hsv(*rgb)
        hue = (hue + rng.uniform(-0.02, 0.02)) % 1.0
        saturation, brightness = saturation * rng.uniform(0.85, 1.0), brightness * rng.uniform(0.8, 1.1)
        jittered = colorsys.hsv_to_rgb(hue, min(saturation, 1.0), min(brightness, 1.0))
        model.geom_rgba[model.geom(f"cube_{colour}").id, :3] = jittered


def _relight(model: mujoco.MjModel, rng: np.random.Generator) -> None:
    for light in range(model.nlight):
        azimuth, height = rng.uniform(0.0, 2.0 * np.pi), rng.uniform(0.8, 2.5)
        position = np.array([np.cos(azimuth), np.sin(azimuth), height])
        model.light_pos[light] = position
        model.light_dir[light] = -position / np.linalg.norm(position)
        model.light_diffuse[light] = rng.uniform(0.1, 0.5) * rng.uniform(0.85, 1.0, 3)
    model.vis.headlight.ambient[:] = rng.uniform(0.25, 0.45)
    model.vis.headlight.diffuse[:] = rng.uniform(0.15, 0.4)


def _disguise(model: mujoco.MjModel, rng: np.random.Generator) -> None:
    """Shows primitives over the meshes of some links and in place of others'. The gripper stays what it is: it is the
    same on every arm, and what a tower must know best."""
    visible = model.geom_group == VISUAL_GROUP
    meshes = visible & (model.geom_type == mujoco.mjtGeom.mjGEOM_MESH)
    for geom in np.flatnonzero(visible & ~meshes):
        if model.geom(geom).name.endswith(DISGUISE_SUFFIX):
            same_body = model.geom_bodyid == model.geom_bodyid[geom]
            _Disguise.draw(rng).apply(model, geom, np.flatnonzero(meshes & same_body))


@dataclass(frozen=True)
class _Disguise:
    """The primitive that is shown for a body, if one is."""

    kind: mujoco.mjtGeom
    shown: bool
    replaces_mesh: bool
    scale: Float[np.ndarray, " 3"]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "_Disguise":
        shapes = mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_CAPSULE, mujoco.mjtGeom.mjGEOM_CYLINDER
        choice = rng.uniform()
        scale = np.append(rng.uniform(0.75, 1.15, 2), rng.uniform(0.9, 1.0))
        return cls(shapes[rng.integers(3)], choice < 0.55, choice < 0.25, scale)

    def apply(self, model: mujoco.MjModel, geom: int, meshes: Int[np.ndarray, " n"]) -> None:
        """`geom` is the body's invisible box, `meshes` what is seen of the body otherwise."""
        if not self.shown:
            return
        width, depth, length = model.geom_size[geom] * self.scale
        radius = (width + depth) / 2
        if self.kind == mujoco.mjtGeom.mjGEOM_BOX:
            size = [width, depth, length]
        elif self.kind == mujoco.mjtGeom.mjGEOM_CAPSULE:
            size = [radius, max(length - radius, 0.001), 0.0]
        else:
            size = [radius, length, 0.0]
        model.geom_type[geom], model.geom_size[geom] = self.kind, size
        model.geom_rgba[geom, 3] = 1.0
        if self.replaces_mesh:
            model.geom_rgba[meshes, 3] = 0.0
