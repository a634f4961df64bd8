"""Which embodiments are sources and which are held out: every boundary, in one place.

A held-out body must not lie where pretraining has drawn samples, or "unseen" means nothing. Each factor that varies
(camera, action frame, joint order, appearance, arm) is therefore cut into a *source* region and a *held-out* region
that cannot meet. The cuts are wedges spread over the whole range rather than one half of it, because the question asked
is whether a model that has seen many bodies reads a new one of the same family, not whether it extrapolates to twice
the elevation it ever saw. A guard band, drawn by neither, keeps the two apart.

Pretraining draws the frames of its virtual bodies with `sample_frame` and `sample_joint_frame` too, so that nothing it
invents lies in the held-out regions either.
"""

from typing import Literal

import numpy as np

from selfalign.data.perturb import JointFrame, LinearFrame

Region = Literal["source", "heldout"]
Scenario = Literal["camera", "action", "joint", "robot", "all"]
REGIONS: tuple[Region, ...] = ("source", "heldout")
SCENARIOS: tuple[Scenario, ...] = ("camera", "action", "joint", "robot", "all")

# Cameras. The bearing is the direction from the workspace centre to the camera, seen from above: 0 degrees is in front
# of the robot (+x), +90 degrees at its left (+y). Beyond about 70 degrees the forearm starts to hide the table.
BEARING_LIMIT = 70.0
CAMERA_WEDGE_CENTRES = (-52.5, -17.5, 17.5, 52.5)
CAMERA_WEDGE_HALF_WIDTH = 5.0
CAMERA_GUARD = 2.0
"""Degrees between the source and the held-out bearings."""
ELEVATION = {"source": (32.0, 65.0), "heldout": (34.0, 62.0)}
FOVY = (42.0, 48.0)
LOOKAT_JITTER = 0.02
"""Metres, each axis."""
DISTANCE_SLACK = (1.0, 1.12)
"""Camera distance in units of the tightest one that keeps the whole workspace box in view."""

# Cameras on the hand. Their bearing around the tool is cut in the same way; on the sides the hand would hide the view.
WRIST_BEARING_LIMIT = 36.0
WRIST_WEDGE_CENTRES = (-18.0, 18.0)
WRIST_WEDGE_HALF_WIDTH = 6.0
WRIST_ELEVATION = (35.0, 50.0)
WRIST_DISTANCE = (0.15, 0.19)
WRIST_FOVY = (70.0, 80.0)

# Action and state frames: rotations and mirrorings of space, times a scale per axis. The cut is by where the canonical
# x axis goes, seen from above in the body's own frame: it splits rotations and reflections alike.
FRAME_WEDGE_CENTRES = (45.0, 135.0, -135.0, -45.0)
FRAME_WEDGE_HALF_WIDTH = 15.0
FRAME_GUARD = 5.0
FRAME_SCALE = (0.5, 2.0)
STATE_OFFSET = 0.05
"""Metres: half-width of the origin shift of a state frame."""

# Joint control. A body is held out if its first joint channel drives one of these joints (counted from the base, 0 the
# first); every order of the other channels, every sign and every scale occurs on both sides.
HELDOUT_FIRST_JOINTS = (1, 4)

# Arms and looks. UR5e is the unseen arm: no source rig or source body has one, with whatever gripper.
SOURCE_ARMS = ("panda", "iiwa", "kinova3", "xarm7", "jaco")
HELDOUT_ARM = "ur5e"
HELDOUT_APPEARANCE = 1_000_000
"""Appearance seeds below are for sources, those from here on for held-out bodies."""


def _distance_to_wedges(angle: float, centres: tuple[float, ...], half_width: float) -> float:
    """Degrees from `angle` to the nearest wedge, 0 inside one."""
    gaps = [abs((angle - centre + 180.0) % 360.0 - 180.0) for centre in centres]
    return max(0.0, min(gaps) - half_width)


def bearing_region(bearing: float) -> Region | None:
    """The region of a camera bearing in degrees; None in the guard band and outside of the sector."""
    if abs(bearing) > BEARING_LIMIT:
        return None
    distance = _distance_to_wedges(bearing, CAMERA_WEDGE_CENTRES, CAMERA_WEDGE_HALF_WIDTH)
    return "heldout" if distance == 0 else "source" if distance > CAMERA_GUARD else None


def wrist_region(bearing: float) -> Region | None:
    """The region of the bearing of a camera on the hand, degrees; None in the guard band and outside of the sector."""
    if abs(bearing) > WRIST_BEARING_LIMIT:
        return None
    distance = _distance_to_wedges(bearing, WRIST_WEDGE_CENTRES, WRIST_WEDGE_HALF_WIDTH)
    return "heldout" if distance == 0 else "source" if distance > CAMERA_GUARD else None


def frame_region(frame: LinearFrame) -> Region | None:
    """The region of an end-effector frame; None in the guard band."""
    return turn_region(frame.x_azimuth)


def turn_region(azimuth: float) -> Region | None:
    """The region of frames whose x axis goes to an azimuth in degrees; None in the guard band."""
    distance = _distance_to_wedges(azimuth, FRAME_WEDGE_CENTRES, FRAME_WEDGE_HALF_WIDTH)
    return "heldout" if distance == 0 else "source" if distance > FRAME_GUARD else None


def joint_frame_region(frame: JointFrame) -> Region:
    """The region of a joint frame."""
    return "heldout" if frame.permutation[0] in HELDOUT_FIRST_JOINTS else "source"


def appearance_region(seed: int) -> Region:
    """The region of an appearance seed."""
    return "heldout" if seed >= HELDOUT_APPEARANCE else "source"


def sample_bearing(rng: np.random.Generator, region: Region) -> float:
    """A camera bearing in degrees, uniform over the region."""
    while True:
        bearing = float(rng.uniform(-BEARING_LIMIT, BEARING_LIMIT))
        if bearing_region(bearing) == region:
            return bearing


def sample_wrist_bearing(rng: np.random.Generator, region: Region) -> float:
    """A bearing of a camera on the hand in degrees, uniform over the region."""
    while True:
        bearing = float(rng.uniform(-WRIST_BEARING_LIMIT, WRIST_BEARING_LIMIT))
        if wrist_region(bearing) == region:
            return bearing


def sample_frame(rng: np.random.Generator, region: Region, offset: float = 0.0, width: float = 1.0) -> LinearFrame:
    """An end-effector frame of the region: rotation and flips uniform over it, scales log-uniform in `FRAME_SCALE`.

    With a width below 1, frames nearer to the canonical one, which is in the source region; see `LinearFrame.sample`.
    """
    return LinearFrame.sample(
        rng, lambda frame: frame_region(frame) == region, scale=FRAME_SCALE, offset=offset, width=width
    )


def sample_joint_frame(rng: np.random.Generator, region: Region, joints: int) -> JointFrame:
    """A joint order of the region with random signs and scales."""
    return JointFrame.sample(rng, joints, lambda frame: joint_frame_region(frame) == region, scale=FRAME_SCALE)


def sample_appearance(rng: np.random.Generator, region: Region) -> int:
    """An appearance seed of the region."""
    return int(rng.integers(HELDOUT_APPEARANCE)) + (HELDOUT_APPEARANCE if region == "heldout" else 0)
