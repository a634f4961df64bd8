"""Offscreen pictures without a window: the backend is found automatically, cameras are placed on a sphere.

At 64 to 128 pixels nothing is gained from shadows, reflections or a skybox, which cost most of a software renderer's
time; they are off.
"""

import atexit
import ctypes.util
import importlib
import os
import weakref
from dataclasses import asdict, dataclass
from typing import Any

import mujoco
import numpy as np
from jaxtyping import Float, UInt8

from selfalign.sim.prepare import COLLISION_GROUP, VISUAL_GROUP

IMAGE_SIZE = 96
"""Pixels of a picture where none are given: what the preset `tiny` reads."""

_NO_BACKEND = (
    "no offscreen OpenGL: neither EGL nor OSMesa could be opened. On Debian or Ubuntu install one with "
    "`apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri` (EGL) or `apt-get install libosmesa6` (OSMesa)."
)

_EGL_PLATFORM_DEVICE = 0x313F


@dataclass(frozen=True, eq=False)
class View:
    """A pinhole camera in the workspace frame."""

    position: Float[np.ndarray, "3"]
    """Its centre, metres."""
    axes: Float[np.ndarray, "3 3"]
    """Rows: the image's right, the image's down and the viewing direction."""
    fovy: float
    """Vertical field of view, degrees."""

    def project(self, points: Float[np.ndarray, "*batch 3"]) -> Float[np.ndarray, "*batch 2"]:
        """Where points of the workspace appear in a square image: u to the right and v down, (0, 0) to (1, 1).

        Points outside of the picture give values outside of [0, 1]; points behind the camera give NaN.
        """
        in_camera = (np.asarray(points, dtype=np.float64) - self.position) @ self.axes.T
        depth = in_camera[..., 2:]
        depth = np.where(depth > 1e-6, depth, np.nan)
        return 0.5 + in_camera[..., :2] / (2.0 * np.tan(np.radians(self.fovy) / 2.0) * depth)


@dataclass(frozen=True)
class WristMount:
    """Where on the hand the camera `wrist` sits: on a sphere around the tip, which it looks at. Degrees and metres.

    It moves with the hand, and is upright while the tool is vertical.
    """

    bearing: float = 0.0
    """Around the tool: 0 is the side that is away from the robot at home, 90 the robot's left."""
    elevation: float = 40.0
    """Above the plane through the tip, across the tool."""
    distance: float = 0.17
    """From the tip."""
    fovy: float = 75.0
    """Vertical field of view."""

    @property
    def position(self) -> Float[np.ndarray, "3"]:
        """The camera's centre in the tip's frame (z along the tool, x to the robot's left at home)."""
        bearing, elevation = np.radians([self.bearing, self.elevation])
        across = np.cos(elevation)
        return self.distance * np.array([across * np.sin(bearing), across * np.cos(bearing), -np.sin(elevation)])

    @property
    def axes(self) -> Float[np.ndarray, "3 3"]:
        """Columns: the image's right and up and the direction backward, in the tip's frame."""
        backward = self.position / self.distance
        right = np.cross([0.0, 0.0, -1.0], backward)
        right /= np.linalg.norm(right)
        return np.stack([right, np.cross(backward, right), backward], axis=1)


@dataclass(frozen=True)
class CameraPose:
    """A camera on a sphere around the point that it looks at, upright. Angles in degrees, lengths in metres."""

    azimuth: float = 0.0
    """Of the camera seen from `lookat`: 0 is in front of the robot looking back at it, 90 is to the robot's left."""
    elevation: float = 40.0
    """Above the table; 90 looks straight down."""
    distance: float = 0.75
    lookat: tuple[float, float, float] = (0.0, 0.0, 0.08)
    """In the workspace frame."""
    fovy: float = 40.0
    """Vertical field of view."""

    @property
    def position(self) -> Float[np.ndarray, " 3"]:
        """The camera's centre in the workspace frame."""
        return np.asarray(self.lookat) - self.distance * self._forward

    @property
    def _forward(self) -> Float[np.ndarray, " 3"]:
        azimuth, elevation = np.radians([self.azimuth, self.elevation])
        return -np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])

    @property
    def axes(self) -> Float[np.ndarray, "3 3"]:
        """Rows: the image's right, the image's down and the viewing direction, in the workspace frame."""
        azimuth = np.radians(self.azimuth)
        right = np.array([-np.sin(azimuth), np.cos(azimuth), 0.0])
        return np.stack([right, np.cross(self._forward, right), self._forward])

    def project(self, points: Float[np.ndarray, "*batch 3"]) -> Float[np.ndarray, "*batch 2"]:
        """Where points of the workspace appear; see `View.project`."""
        return View(self.position, self.axes, self.fovy).project(points)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "lookat": list(self.lookat)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "CameraPose":
        """The inverse of `to_dict`."""
        return cls(**{**values, "lookat": tuple(values["lookat"])})


def open_context(width: int, height: int) -> Any:
    """A current OpenGL context of the backend that `find_backend` finds.

    Raises:
        RuntimeError: none works; the message names the package to install.
    """
    backend = find_backend()
    # PyOpenGL reads this once, when it is first imported.
    os.environ["PYOPENGL_PLATFORM"] = backend
    try:
        context = importlib.import_module(f"mujoco.{backend}").GLContext(width, height)
        context.make_current()
    # Loading a GL library fails in many ways (ImportError, OSError, AttributeError, GL errors): all mean the same.
    except Exception as error:
        raise RuntimeError(f"{_NO_BACKEND} Tried {backend} (MUJOCO_GL): {error!r}") from error
    return context


def find_backend() -> str:
    """The value of `MUJOCO_GL`; where it has none, it is set to `egl`, or to `osmesa` if EGL finds no device.

    Raises:
        RuntimeError: there is neither.
    """
    chosen = os.environ.get("MUJOCO_GL", "").lower()
    if chosen in ("egl", "osmesa", "glfw"):
        return chosen
    if _egl_finds_a_device():
        backend = "egl"
    elif ctypes.util.find_library("OSMesa"):
        backend = "osmesa"
    else:
        raise RuntimeError(_NO_BACKEND)
    os.environ["MUJOCO_GL"] = backend
    return backend


def _egl_finds_a_device() -> bool:
    """Asks EGL directly, since a process that has imported `mujoco.egl` cannot use OSMesa any more."""
    library = ctypes.util.find_library("EGL")
    if library is None:
        return False
    egl, pointer = ctypes.CDLL(library), ctypes.c_void_p
    egl.eglGetProcAddress.restype = pointer
    egl.eglInitialize.argtypes = [pointer, pointer, pointer]
    query, get_display = (egl.eglGetProcAddress(name) for name in (b"eglQueryDevicesEXT", b"eglGetPlatformDisplayEXT"))
    if not (query and get_display):
        return False
    devices, count = (pointer * 32)(), ctypes.c_int()
    ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, pointer, pointer)(query)(32, devices, ctypes.byref(count))
    found = devices[: count.value]
    # The one device that mujoco.egl is told to use, or any.
    if wanted := os.environ.get("MUJOCO_EGL_DEVICE_ID"):
        found = found[int(wanted) : int(wanted) + 1] if wanted.isdigit() else []
    display = ctypes.CFUNCTYPE(pointer, ctypes.c_uint, pointer, pointer)(get_display)
    return any(egl.eglInitialize(display(_EGL_PLATFORM_DEVICE, device, None), None, None) for device in found)


class Renderer:
    """Pictures of one scene. Holds an OpenGL context with the scene's meshes; `close` (or deletion) frees it.

    Args:
        model: the scene; colours, lights and cameras may change between pictures, meshes may not.
        max_size: the largest width or height that will be asked for, pixels.
    """

    def __init__(self, model: mujoco.MjModel, max_size: int = 256):
        self._model = model
        self.max_size = max_size
        model.vis.global_.offwidth = model.vis.global_.offheight = max_size
        self._context = open_context(max_size, max_size)
        self._scene = mujoco.MjvScene(model, maxgeom=256)
        for flag in mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION, mujoco.mjtRndFlag.mjRND_SKYBOX:
            self._scene.flags[flag] = False
        self._option = mujoco.MjvOption()
        self._option.geomgroup[:] = 0
        self._option.geomgroup[[0, VISUAL_GROUP]] = 1
        self._option.geomgroup[COLLISION_GROUP] = 0
        self._option.sitegroup[:] = 0
        self._camera = mujoco.MjvCamera()
        self._gpu = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._gpu)
        # mujoco.egl closes the display at exit; contexts must be gone by then. Handlers run last in, first out, so
        # ours is registered here, and not by `finalize`, which may have done so before that module was imported.
        self._finalizer = weakref.finalize(self, _free, self._gpu, self._context)
        self._finalizer.atexit = False
        atexit.register(self._finalizer)

    def render(self, data: mujoco.MjData, camera: CameraPose | str, size: int) -> UInt8[np.ndarray, "size size 3"]:
        """One picture.

        Args:
            data: the scene's state, after `mj_forward` or `mj_kinematics`.
            camera: a pose, or the name of a camera of the model (`"wrist"`).
            size: width and height in pixels, at most `max_size`.
        """
        if not 0 < size <= self.max_size:
            raise ValueError(f"cannot render {size} px: this renderer makes 1 to {self.max_size} px")
        # Lights and cameras that moved since the last step take effect here.
        mujoco.mj_camlight(self._model, data)
        self._place(camera)
        self._context.make_current()
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(self._model, data, self._option, None, self._camera, everything, self._scene)
        viewport = mujoco.MjrRect(0, 0, size, size)
        mujoco.mjr_render(viewport, self._scene, self._gpu)
        image = np.empty((size, size, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(image, None, viewport, self._gpu)
        return image[::-1].copy()

    def _place(self, camera: CameraPose | str) -> None:
        if isinstance(camera, str):
            self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
            self._camera.fixedcamid = self._model.camera(camera).id
            return
        # MuJoCo's free camera gives its viewing direction, ours gives where the camera stands.
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FREE
        self._camera.azimuth, self._camera.elevation = camera.azimuth + 180.0, -camera.elevation
        self._camera.distance = camera.distance
        self._camera.lookat[:] = camera.lookat
        self._model.vis.global_.fovy = camera.fovy

    def close(self) -> None:
        """Frees the context; no picture can be made afterwards."""
        self._finalizer()


def _free(gpu: mujoco.MjrContext, context: Any) -> None:
    context.make_current()
    gpu.free()
    context.free()
