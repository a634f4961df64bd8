"""Composes a robot and its scene from robosuite's models once, and keeps the result as one XML file in the cache.

Simulating robosuite's own models renders some 100,000 to 260,000 faces an image. Here the visual meshes of each body
are merged by colour and decimated, the arm's collision meshes become primitive fits, its motors become position servos
and gravity is compensated; the file then holds everything (meshes inline), so loading it needs MuJoCo alone.
"""

import contextlib
import hashlib
import inspect
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import mujoco
import numpy as np
from jaxtyping import Float, Int

from selfalign.data.cache_dir import cache_dir
from selfalign.sim import meshes
from selfalign.sim.meshes import Surface, body_surfaces, decimate, geom_surface, principal_box
from selfalign.sim.robots import ARMS, GRIPPERS, ArmModel, GripperModel, RobotSpec

_LOG = logging.getLogger(__name__)

CUBE_COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.10, 0.08),
    "green": (0.10, 0.62, 0.15),
    "blue": (0.10, 0.25, 0.85),
    "yellow": (0.92, 0.80, 0.08),
}
CUBE_HALF = 0.02
TABLE_HALF = (0.36, 0.50, 0.02)
PARKED_HEIGHT = -30.0
"""Height in metres at which cubes that are not in the scene float, below everything and out of every view."""

VISUAL_GROUP = 2
COLLISION_GROUP = 3
DISGUISE_SUFFIX = "_disguise"
SCENERY = {"contype": 0, "conaffinity": 0, "group": VISUAL_GROUP, "mass": 0.0}
"""What makes a geom visible and nothing else."""
ARM_FACES = 2800
GRIPPER_FACES = 1200
SERVO_FREQUENCY = 45.0
"""Natural frequency of the critically damped joint servos, rad/s."""


def prepare(robot: RobotSpec) -> Path:
    """The scene of `robot` as an XML file in the cache, composed now (a few seconds) if it is not there yet.

    Raises:
        ImportError: robosuite is not installed and the scene has not been prepared before.
    """
    path = cache_dir("scenes") / f"{robot.name}-{_version_key(robot)}.xml"
    if not path.exists():
        _LOG.info("preparing %s, once; the result is kept in %s", robot.name, path.parent)
        _write_atomically(path, compose_scene(robot))
    return path


def _version_key(robot: RobotSpec) -> str:
    """Changes whenever the scene would: with this code, the robot's description or MuJoCo's version."""
    parts = (
        inspect.getsource(sys.modules[__name__]),
        inspect.getsource(meshes),
        repr(ARMS[robot.arm]),
        repr(GRIPPERS[robot.gripper]),
        mujoco.__version__,
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _write_atomically(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def compose_scene(robot: RobotSpec) -> str:
    """The MuJoCo XML of `robot` on its pedestal behind a table with four cubes, two lights and a wrist camera."""
    arm, gripper = ARMS[robot.arm], GRIPPERS[robot.gripper]
    spec, joints = _compose_robot(arm, gripper)
    original = spec.compile()
    _strip(spec)
    _replace_visuals(spec, original)
    _simplify_collisions(spec, original, gripper)
    _delete_unused_assets(spec)
    _set_joints(spec, joints, arm, gripper)
    _add_tip(spec, joints, arm, gripper)
    _add_scene(spec, arm)
    _set_options(spec, gripper)
    _add_servos(spec, joints, arm, gripper)
    spec.modelname = robot.name
    spec.compile()
    return spec.to_xml()


@contextlib.contextmanager
def _quiet_import() -> Iterator[None]:
    """robosuite warns of optional extras on import, none of which is used here, and decides on a rendering backend for
    the whole process, which is `selfalign.sim.render`'s to do."""
    level, backend = logging.root.manager.disable, os.environ.get("MUJOCO_GL")
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)
        os.environ.pop("MUJOCO_GL", None)
        if backend is not None:
            os.environ["MUJOCO_GL"] = backend


def _compose_robot(arm: ArmModel, gripper: GripperModel) -> tuple[mujoco.MjSpec, list[str]]:
    try:
        with _quiet_import():
            from robosuite.models.grippers import gripper_factory
            from robosuite.models.robots import create_robot
    except ImportError as error:
        raise ImportError("composing a robot needs robosuite: pip install 'selfalign[sim]'") from error
    model = create_robot(arm.robosuite_name)
    model.add_gripper(gripper_factory(gripper.robosuite_name))
    return mujoco.MjSpec.from_string(model.get_xml()), list(model.joints)


def _strip(spec: mujoco.MjSpec) -> None:
    """Removes what the scene replaces or has no use for."""
    unused = [*spec.actuators, *spec.sensors, *spec.keys, *spec.cameras, *spec.lights]
    for element in unused:
        spec.delete(element)
    for site in list(spec.sites):
        if not site.name.endswith("grip_site"):
            spec.delete(site)


# --- visual meshes


def _replace_visuals(spec: mujoco.MjSpec, original: mujoco.MjModel) -> None:
    surfaces = {body.name: body_surfaces(original, body.name) for body in spec.bodies}
    for geom in list(spec.geoms):
        if geom.group != 0 and geom.type == mujoco.mjtGeom.mjGEOM_MESH:
            spec.delete(geom)
        elif geom.group != 0:
            geom.group = VISUAL_GROUP
    for prefix, budget in (("robot0_", ARM_FACES), ("gripper0_", GRIPPER_FACES)):
        part = {name: parts for name, parts in surfaces.items() if name.startswith(prefix) and parts}
        total = sum(surface.area**0.5 for parts in part.values() for surface in parts)
        for name, parts in part.items():
            _add_surfaces(spec, name, parts, budget / total)
            if prefix == "robot0_":
                _add_disguise(spec, name, parts)


def _add_surfaces(spec: mujoco.MjSpec, body: str, surfaces: list[Surface], faces_per_metre: float) -> None:
    for index, surface in enumerate(surfaces):
        vertices, faces = decimate(surface, max(24, int(faces_per_metre * surface.area**0.5)))
        mesh = _add_mesh(spec, f"{body}_visual_{index}", vertices, faces)
        spec.body(body).add_geom(
            name=mesh.name, type=mujoco.mjtGeom.mjGEOM_MESH, meshname=mesh.name, rgba=surface.rgba, **SCENERY
        )


def _add_disguise(spec: mujoco.MjSpec, body: str, surfaces: list[Surface]) -> None:
    """An invisible box around the body, which an `Appearance` may show instead of the meshes or over them."""
    centre, quaternion, half_sizes = principal_box(surfaces)
    spec.body(body).add_geom(
        name=f"{body}{DISGUISE_SUFFIX}",
        type=mujoco.mjtGeom.mjGEOM_BOX,
        pos=centre,
        quat=quaternion,
        size=np.maximum(half_sizes, 0.003),
        rgba=[0.5, 0.5, 0.5, 0.0],
        **SCENERY,
    )


def _add_mesh(
    spec: mujoco.MjSpec, name: str, vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"]
) -> mujoco.MjsMesh:
    return spec.add_mesh(
        name=name,
        uservert=vertices.ravel().tolist(),
        userface=faces.ravel().tolist(),
        inertia=mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL,  # decimated surfaces need not be closed
    )


# --- bodies, joints, servos


def _simplify_collisions(spec: mujoco.MjSpec, original: mujoco.MjModel, gripper: GripperModel) -> None:
    """Robot geoms touch the table and the cubes only; links of the arm become capsules, fingers keep their hulls."""
    mesh_type, capsule_type = mujoco.mjtGeom.mjGEOM_MESH, mujoco.mjtGeom.mjGEOM_CAPSULE
    for geom in spec.geoms:
        if geom.group == VISUAL_GROUP:
            continue
        geom.group, geom.contype, geom.conaffinity, geom.condim = COLLISION_GROUP, 0, 1, 3
        if any(pad in geom.name for pad in gripper.pads):
            geom.condim, geom.friction, geom.solref = 4, [2.0, 0.05, 0.0001], [0.01, 1.0]
        if geom.type == mesh_type and geom.name.startswith("gripper0_"):
            vertices, faces = decimate(geom_surface(original, original.geom(geom.name).id), 150)
            mesh = _add_mesh(spec, f"{geom.name}_hull", vertices, faces)
            geom.meshname, geom.pos, geom.quat = mesh.name, [0, 0, 0], [1, 0, 0, 0]
        elif geom.type == mesh_type:
            geom.type = capsule_type
    fitted = spec.compile()
    for geom in spec.geoms:
        if geom.type == capsule_type and geom.meshname:
            fit = fitted.geom(geom.name)
            geom.meshname, geom.size, geom.pos, geom.quat = "", fit.size, fit.pos, fit.quat


def _delete_unused_assets(spec: mujoco.MjSpec) -> None:
    """What is left refers to no file outside of the scene's XML."""
    used = {geom.meshname for geom in spec.geoms}
    for mesh in list(spec.meshes):
        if mesh.name not in used:
            spec.delete(mesh)
    for geom in spec.geoms:
        geom.material = ""
    for element in [*spec.materials, *spec.textures]:
        spec.delete(element)


def _add_tip(spec: mujoco.MjSpec, joints: list[str], arm: ArmModel, gripper: GripperModel) -> None:
    """The site `tip`: z is the approach direction, x the axis of the fingers, to the robot's left at home."""
    site = next(site for site in spec.sites if site.name.endswith("grip_site"))
    site.name, site.group = "tip", 4
    site.pos = np.asarray(site.pos) + [0.0, 0.0, gripper.tip_offset]
    _turn(site, gripper.finger_turn)
    _, data = _at_home(spec, joints, arm)
    if data.site("tip").xmat[3] < 0:
        _turn(site, np.pi)
    _add_wrist_camera(site)


def _turn(site: mujoco.MjsSite, angle: float) -> None:
    turned = np.zeros(4)
    mujoco.mju_mulQuat(turned, site.quat, [np.cos(angle / 2), 0, 0, np.sin(angle / 2)])
    site.quat = turned


def _add_wrist_camera(tip: mujoco.MjsSite) -> None:
    """The camera `wrist`, beside the gripper on the side away from the robot, looking at the tip."""
    position = np.array([0.0, 0.13, -0.11])
    right, backward = np.array([-1.0, 0.0, 0.0]), position / np.linalg.norm(position)
    axes = np.stack([right, np.cross(backward, right), backward], axis=1)
    turn, orientation, offset = np.zeros(4), np.zeros(4), np.zeros(3)
    mujoco.mju_mat2Quat(turn, axes.ravel())
    mujoco.mju_mulQuat(orientation, tip.quat, turn)
    mujoco.mju_rotVecQuat(offset, position, tip.quat)
    tip.parent.add_camera(name="wrist", pos=np.asarray(tip.pos) + offset, quat=orientation, fovy=75)


def _at_home(spec: mujoco.MjSpec, joints: list[str], arm: ArmModel) -> tuple[mujoco.MjModel, mujoco.MjData]:
    model = spec.compile()
    data = mujoco.MjData(model)
    data.qpos[[model.joint(name).qposadr[0] for name in joints]] = arm.home
    mujoco.mj_forward(model, data)
    return model, data


def _set_joints(spec: mujoco.MjSpec, joints: list[str], arm: ArmModel, gripper: GripperModel) -> None:
    spec.body("robot0_base").pos = arm.base_position
    for body in spec.bodies:
        if body.name != "world":
            body.gravcomp = 1.0
    for name in joints:
        joint = spec.joint(name)
        joint.armature, joint.frictionloss, joint.damping = 0.1, 0.0, 0.5
    for drive in gripper.drives:
        joint = spec.joint(f"gripper0_{drive.joint}")
        joint.armature, joint.frictionloss, joint.damping = drive.armature, 0.0, 0.0


def _add_servos(spec: mujoco.MjSpec, joints: list[str], arm: ArmModel, gripper: GripperModel) -> None:
    """Critically damped position servos, tuned to the inertia each joint carries at home."""
    model, data = _at_home(spec, joints, arm)
    mass = np.zeros((model.nv, model.nv))
    mujoco.mj_fullM(model, mass, data.qM)
    for name in joints:
        dof = model.joint(name).dofadr[0]
        inertia = float(mass[dof, dof])
        _add_position_servo(spec, name, inertia * SERVO_FREQUENCY**2, 2.0 * inertia * SERVO_FREQUENCY)
    for drive in gripper.drives:
        servo = _add_position_servo(spec, f"gripper0_{drive.joint}", drive.stiffness, drive.damping)
        servo.forcelimited = True
        servo.forcerange = [-drive.force_limit, drive.force_limit]


def _add_position_servo(spec: mujoco.MjSpec, joint: str, stiffness: float, damping: float) -> mujoco.MjsActuator:
    servo = spec.add_actuator(name=joint, target=joint, trntype=mujoco.mjtTrn.mjTRN_JOINT)
    servo.set_to_position(kp=stiffness, kv=damping)
    return servo


# --- the scene


def _add_scene(spec: mujoco.MjSpec, arm: ArmModel) -> None:
    world = spec.worldbody
    box = mujoco.mjtGeom.mjGEOM_BOX
    world.add_geom(
        name="table", type=box, size=TABLE_HALF, pos=[0, 0, -TABLE_HALF[2]], rgba=[0.62, 0.55, 0.45, 1], condim=3
    )
    base_x, base_y, base_z = arm.base_position
    pedestal = (base_z + 0.8) / 2
    world.add_geom(
        name="pedestal",
        type=box,
        size=[0.10, 0.10, pedestal],
        pos=[base_x, base_y, base_z - pedestal],
        rgba=[0.3, 0.3, 0.32, 1],
        **SCENERY,
    )
    world.add_geom(name="floor", type=box, size=[10, 10, 0.05], pos=[0, 0, -0.85], rgba=[0.45, 0.47, 0.5, 1], **SCENERY)
    for index, (colour, rgb) in enumerate(CUBE_COLOURS.items()):
        body = world.add_body(name=f"cube_{colour}", pos=[index, 0, PARKED_HEIGHT])
        body.add_freejoint(name=f"cube_{colour}")
        body.add_geom(
            name=f"cube_{colour}",
            type=box,
            size=[CUBE_HALF] * 3,
            mass=0.05,
            rgba=[*rgb, 1],
            condim=4,
            friction=[1.0, 0.01, 0.0001],
            solref=[0.01, 1.0],
        )
    directional = mujoco.mjtLightType.mjLIGHT_DIRECTIONAL
    for name, position, diffuse in (("key", [0.5, -0.8, 2.0], 0.45), ("fill", [0.3, 1.0, 1.5], 0.2)):
        direction = -np.asarray(position) / np.linalg.norm(position)
        world.add_light(
            name=name, pos=position, dir=direction, diffuse=[diffuse] * 3, specular=[0.1] * 3, type=directional,
            castshadow=False,
        )  # fmt: skip


def _set_options(spec: mujoco.MjSpec, gripper: GripperModel) -> None:
    spec.option.timestep = gripper.timestep
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    spec.option.impratio = 5.0
    spec.option.iterations = 20
    quality, headlight = spec.visual.quality, spec.visual.headlight
    quality.offsamples = 4
    quality.numslices, quality.numstacks, quality.numquads = 12, 6, 2
    headlight.ambient, headlight.diffuse, headlight.specular = [0.35] * 3, [0.3] * 3, [0.0] * 3
    spec.visual.global_.offwidth = spec.visual.global_.offheight = 512
    spec.visual.map.znear, spec.visual.map.zfar = 0.02, 20.0
    spec.stat.extent, spec.stat.center = 1.0, [0.0, 0.0, 0.1]
