"""A recorded camera that looks elsewhere: pictures turned and zoomed about the camera's optical centre.

A camera that turns without moving sees no parallax, so each of its pixels stands somewhere in the recorded picture:
`p' ~ K' R K^-1 p` with K the pinhole matrix and R from the old camera's axes to the new one's (right, down, forward).
Where a place lands is exact. Pixels are interpolated, and what the recorded camera did not see is filled with black.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from selfalign.data.episodes import Episode
from selfalign.data.perturb import Matrix3, matrix3


@dataclass(frozen=True)
class CameraTurn:
    """One camera of an episode, turned by `rotation` and zoomed.

    Columns that tell places in pictures are not changed (`place` does that).

    Raises:
        ValueError: `rotation` is none, turns the camera away, or zoom or field of view are out of range.
    """

    camera: str
    """Bare name."""
    rotation: Matrix3
    """From the old camera's axes (right, down, forward) to the new one's."""
    zoom: float = 1.0
    """The focal length is multiplied by it."""
    fovy: float = 45.0
    """Vertical field of view of the recorded camera, degrees."""
    exact: bool = False

    def __post_init__(self) -> None:
        rotation = np.asarray(self.rotation, dtype=np.float64)
        if rotation.shape != (3, 3) or not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-6):
            raise ValueError(f"a camera turns by a 3x3 rotation, got {rotation.tolist()}")
        if np.linalg.det(rotation) < 0 or rotation[2, 2] <= 0.1:
            raise ValueError("a camera cannot be mirrored, nor turned so far that it looks away from what it saw")
        if not self.zoom > 0 or not 0 < self.fovy < 180:
            raise ValueError(f"zoom and field of view must be positive, got {self.zoom} and {self.fovy} degrees")
        object.__setattr__(self, "rotation", matrix3(rotation))

    @classmethod
    def build(cls, camera: str, pan: float = 0, tilt: float = 0, roll: float = 0, **settings: Any) -> Self:
        """Turned to the right by `pan`, then down by `tilt`, then clockwise by `roll` about its own axes, degrees."""
        (cp, sp), (ct, st), (cr, sr) = ((np.cos(angle), np.sin(angle)) for angle in np.radians([pan, tilt, roll]))
        to_right = np.array([[cp, 0, -sp], [0, 1, 0], [sp, 0, cp]])
        down = np.array([[1, 0, 0], [0, ct, -st], [0, st, ct]])
        clockwise = np.array([[cr, sr, 0], [-sr, cr, 0], [0, 0, 1]])
        return cls(camera, matrix3(clockwise @ down @ to_right), **settings)

    @classmethod
    def sample(
        cls,
        rng: np.random.Generator,
        camera: str,
        *,
        angle: float = 10.0,
        roll: float = 10.0,
        zoom: tuple[float, float] = (0.9, 1.1),
        fovy: float = 45.0,
    ) -> Self:
        """Uniform pan and tilt in +-angle and roll in +-roll (degrees), log-uniform zoom."""
        pan, tilt = rng.uniform(-angle, angle, size=2)
        scale = float(np.exp(rng.uniform(np.log(zoom[0]), np.log(zoom[1]))))
        return cls.build(camera, float(pan), float(tilt), float(rng.uniform(-roll, roll)), zoom=scale, fovy=fovy)

    def matrix(self, height: int, width: int) -> Float[np.ndarray, "3 3"]:
        """The homography from old to new pixels (x to the right, y down, the first pixel's centre at 0.5, 0.5)."""
        focal = height / 2 / np.tan(np.radians(self.fovy) / 2)
        old = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
        new = old @ np.diag([self.zoom, self.zoom, 1.0])
        return new @ np.asarray(self.rotation) @ np.linalg.inv(old)

    def place(self, points: Float[np.ndarray, "*lead 2"], height: int, width: int) -> Float[np.ndarray, "*lead 2"]:
        """Where points (u, v) in [0, 1] of the old picture are in the new one; NaN behind the camera."""
        return _moved(points, self.matrix(height, width), height, width)

    def unplace(self, points: Float[np.ndarray, "*lead 2"], height: int, width: int) -> Float[np.ndarray, "*lead 2"]:
        """Undoes `place`."""
        return _moved(points, np.linalg.inv(self.matrix(height, width)), height, width)

    def apply(self, episode: Episode) -> Episode:
        """What the turned camera would have recorded."""
        return self._warped(episode, inverse=False)

    def invert(self, episode: Episode) -> Episode:
        """Undoes `apply`, but for what left the picture and what interpolation smoothed."""
        return self._warped(episode, inverse=True)

    def _warped(self, episode: Episode, *, inverse: bool) -> Episode:
        if self.camera not in episode.images:
            raise ValueError(f"the episode has no camera {self.camera!r}; it has {', '.join(episode.images) or 'none'}")
        frames = episode.images[self.camera]
        matrix = self.matrix(*frames.shape[1:3])
        images: Mapping[str, np.ndarray] = {
            **episode.images,
            self.camera: warp(frames, np.linalg.inv(matrix) if inverse else matrix),
        }
        return replace(episode, images=images)


def warp(frames: UInt8[np.ndarray, "T H W 3"], matrix: Float[np.ndarray, "3 3"]) -> UInt8[np.ndarray, "T H W 3"]:
    """Frames through a homography from old to new pixels, bilinear; black where nothing was seen."""
    back = np.linalg.inv(matrix)
    numbers = tuple((back / back[2, 2]).reshape(-1)[:8].tolist())
    size = frames.shape[2], frames.shape[1]
    moved = (
        Image.fromarray(frame).transform(size, Image.Transform.PERSPECTIVE, numbers, Image.Resampling.BILINEAR)
        for frame in frames
    )
    return np.stack([np.asarray(picture) for picture in moved])


def _moved(points: np.ndarray, matrix: np.ndarray, height: int, width: int) -> np.ndarray:
    size = np.array([width, height], dtype=np.float64)
    pixels = np.asarray(points, dtype=np.float64) * size
    homogeneous = np.concatenate([pixels, np.ones_like(pixels[..., :1])], axis=-1) @ matrix.T
    depth = np.where(homogeneous[..., 2:] > 0, homogeneous[..., 2:], np.nan)
    return homogeneous[..., :2] / depth / size
