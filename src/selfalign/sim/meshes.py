"""The visual surfaces of a compiled robot: merged by colour, decimated, and measured against the originals."""

from collections.abc import Iterator
from dataclasses import dataclass

import fast_simplification
import mujoco
import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import KDTree


@dataclass(frozen=True)
class Surface:
    """Triangles of one colour in their body's frame."""

    vertices: Float[np.ndarray, "V 3"]
    faces: Int[np.ndarray, "F 3"]
    rgba: tuple[float, ...]

    @property
    def area(self) -> float:
        """Square metres."""
        a, b, c = (self.vertices[self.faces[:, i]] for i in range(3))
        return float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2)


def body_surfaces(model: mujoco.MjModel, body_name: str, max_colours: int = 3) -> list[Surface]:
    """The visual meshes of a body merged by colour; colours beyond `max_colours` join the largest."""
    by_colour: dict[tuple[float, ...], list[Surface]] = {}
    body = model.body(body_name).id
    for geom in range(model.ngeom):
        is_mesh = model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_MESH
        if model.geom_bodyid[geom] != body or not is_mesh or model.geom_group[geom] == 0:
            continue
        surface = geom_surface(model, geom)
        by_colour.setdefault(surface.rgba, []).append(surface)
    merged = sorted((_merge(parts) for parts in by_colour.values()), key=lambda part: -part.area)
    if len(merged) > max_colours:
        rest = [Surface(part.vertices, part.faces, merged[0].rgba) for part in merged[max_colours:]]
        merged = [_merge([merged[0], *rest]), *merged[1:max_colours]]
    return merged


def geom_surface(model: mujoco.MjModel, geom: int) -> Surface:
    """The mesh of a geom, moved from the mesh's frame into the body's."""
    mesh = model.geom_dataid[geom]
    vertex_start, face_start = model.mesh_vertadr[mesh], model.mesh_faceadr[mesh]
    vertices = model.mesh_vert[vertex_start : vertex_start + model.mesh_vertnum[mesh]].astype(np.float64)
    faces = model.mesh_face[face_start : face_start + model.mesh_facenum[mesh]].astype(np.int64)
    rotation = np.zeros(9)
    mujoco.mju_quat2Mat(rotation, model.geom_quat[geom])
    material = model.geom_matid[geom]
    rgba = model.mat_rgba[material] if material >= 0 else model.geom_rgba[geom]
    vertices = vertices @ rotation.reshape(3, 3).T + model.geom_pos[geom]
    return Surface(vertices, faces, tuple(round(float(value), 2) for value in rgba))


def _merge(parts: list[Surface]) -> Surface:
    offsets = np.cumsum([0, *(len(part.vertices) for part in parts[:-1])])
    vertices = np.concatenate([part.vertices for part in parts])
    faces = np.concatenate([part.faces + offset for part, offset in zip(parts, offsets, strict=True)])
    return Surface(vertices, faces, parts[0].rgba)


def principal_box(surfaces: list[Surface]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The box around surfaces along their principal axes: centre [3], quaternion [4], half sizes [3], longest last."""
    points = np.concatenate([_sample(surface.vertices, surface.faces) for surface in surfaces])
    axes = np.linalg.eigh(np.cov(points.T))[1]
    axes[:, 0] *= np.sign(np.linalg.det(axes))
    along = points @ axes
    low, high = np.quantile(along, 0.01, axis=0), np.quantile(along, 0.99, axis=0)
    quaternion = np.zeros(4)
    mujoco.mju_mat2Quat(quaternion, axes.ravel())
    return axes @ ((low + high) / 2), quaternion, (high - low) / 2


def decimate(surface: Surface, target: int) -> tuple[Float[np.ndarray, "V 3"], Int[np.ndarray, "F 3"]]:
    """About `target` faces (at most 1.5 times as many) that stay closest to the surface.

    Some of the meshes are soups of unconnected or overlapping pieces, of which edge collapse may eat whole parts. So
    several settings compete, with welding to a grid, which never loses a part, among them.
    """
    vertices, faces = _weld(surface.vertices, surface.faces, 1e-5)
    if len(faces) <= target:
        return vertices, faces
    points = _sample(vertices, faces)
    best, best_distance = (vertices, faces), np.inf
    for candidate in _decimations(surface, target):
        if not 0 < len(candidate[1]) <= 1.4 * target + 16:
            continue
        distance = _distance(points, _sample(*candidate))
        if distance < best_distance:
            best, best_distance = candidate, distance
    return best


def _decimations(surface: Surface, target: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for weld, aggressiveness in (1e-5, 7), (5e-4, 4), (2e-3, 4):
        vertices, faces = _weld(surface.vertices, surface.faces, weld)
        if len(faces) > target:
            simplified = fast_simplification.simplify(
                vertices, faces.astype(np.int32), target_count=target, agg=aggressiveness
            )
            yield _weld(simplified[0], simplified[1], 1e-6)
    cell = 4e-3
    welded = _weld(surface.vertices, surface.faces, cell)
    while len(welded[1]) > 1.4 * target + 16:
        cell *= 1.25
        welded = _weld(surface.vertices, surface.faces, cell)
    yield welded


def _sample(vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"]) -> Float[np.ndarray, "N 3"]:
    """Points spread evenly over a surface, the same for the same surface."""
    rng = np.random.default_rng(0)
    a, b, c = (vertices[faces[:, i]].astype(np.float64) for i in range(3))
    areas = np.linalg.norm(np.cross(b - a, c - a), axis=1) + 1e-12
    chosen = rng.choice(len(faces), 2000, p=areas / areas.sum())
    u, v = np.sqrt(rng.uniform(size=(2000, 1))), rng.uniform(size=(2000, 1))
    return (1 - u) * a[chosen] + u * (1 - v) * b[chosen] + u * v * c[chosen]


def _distance(one: Float[np.ndarray, "N 3"], other: Float[np.ndarray, "N 3"]) -> float:
    """Nearly the farthest that a point of either cloud is from the other cloud."""
    pairs = (one, other), (other, one)
    return max(float(np.quantile(KDTree(there).query(here)[0], 0.98)) for here, there in pairs)


def _weld(
    vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"], cell: float
) -> tuple[Float[np.ndarray, "W 3"], Int[np.ndarray, "G 3"]]:
    """Vertices that share a cell of that size become one; faces that vanish or repeat by this are dropped."""
    cells = np.floor(vertices / cell + 0.5).astype(np.int64)
    _, first, inverse = np.unique(cells, axis=0, return_index=True, return_inverse=True)
    faces = inverse.ravel()[faces]
    faces = _without_degenerate(faces)
    _, kept = np.unique(np.sort(faces, axis=1), axis=0, return_index=True)
    used, faces = np.unique(faces[np.sort(kept)], return_inverse=True)
    return vertices[first][used].astype(np.float32), faces.reshape(-1, 3).astype(np.int64)


def _without_degenerate(faces: Int[np.ndarray, "F 3"]) -> Int[np.ndarray, "G 3"]:
    a, b, c = faces.T
    return faces[(a != b) & (b != c) & (c != a)]
