import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from data.factory import make_episode
from selfalign.data.homography import CameraTurn, warp
from selfalign.sim.render import CameraPose

seeds = st.integers(0, 2**32 - 1)
places = hnp.arrays(np.float64, (5, 2), elements=st.floats(0, 1))


@given(seeds, places)
@settings(max_examples=50, deadline=None)
def test_places_come_back(seed, points):
    turn = CameraTurn.sample(np.random.default_rng(seed), "scene", angle=20, roll=45, zoom=(0.5, 2))
    np.testing.assert_allclose(turn.unplace(turn.place(points, 48, 64), 48, 64), points, atol=1e-9)


def looking_elsewhere(camera: CameraPose, azimuth: float, elevation: float) -> CameraPose:
    """The same optical centre, another direction."""
    other = CameraPose(azimuth, elevation, camera.distance, camera.lookat, camera.fovy)
    shift = camera.position - other.position
    return CameraPose(azimuth, elevation, camera.distance, tuple(np.asarray(camera.lookat) + shift), camera.fovy)


@pytest.mark.parametrize(("azimuth", "elevation"), [(28.0, 45.0), (20.0, 38.0), (12.0, 52.0)])
def test_a_turn_is_what_the_simulators_camera_does(azimuth, elevation):
    """Points in space, projected by a camera that turns on the spot, land where the homography says."""
    old = CameraPose(20.0, 45.0, 0.8, (0.0, 0.0, 0.07), 45.0)
    new = looking_elsewhere(old, azimuth, elevation)
    np.testing.assert_allclose(new.position, old.position, atol=1e-12)
    turn = CameraTurn("scene", new.axes @ old.axes.T, fovy=45.0)
    points = np.random.default_rng(0).uniform(-0.15, 0.15, (50, 3))
    np.testing.assert_allclose(turn.place(old.project(points), 96, 96), new.project(points), atol=1e-9)


@pytest.mark.parametrize(
    ("settings", "moved"),
    [
        ({"pan": 5}, (-1, 0)),  # the camera turns to the right, the picture goes to the left
        ({"tilt": 5}, (0, -1)),
        ({"pan": -5, "tilt": -5}, (1, 1)),
    ],
)
def test_the_picture_goes_the_other_way(settings, moved):
    shift = CameraTurn.build("scene", **settings).place(np.array([0.5, 0.5]), 64, 64) - 0.5
    np.testing.assert_array_equal(np.sign(np.round(shift, 6)), moved)


def test_roll_and_zoom_are_about_the_centre():
    turn = CameraTurn.build("scene", roll=90, zoom=0.5)
    np.testing.assert_allclose(turn.place(np.array([[0.5, 0.5], [0.75, 0.5]]), 64, 64), [[0.5, 0.5], [0.5, 0.375]])


def smooth_frames(size=64) -> np.ndarray:
    y, x = np.mgrid[0:size, 0:size] / size
    picture = np.stack([np.sin(6 * x + 2), np.cos(5 * y), np.sin(4 * (x + y))], axis=-1)
    return np.repeat((127 + 120 * picture).astype(np.uint8)[None], 2, axis=0)


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_pictures_follow_their_places(seed):
    """Each new pixel has the colour of the old place that it came from, computed without the library."""
    turn = CameraTurn.sample(np.random.default_rng(seed), "scene", angle=6, roll=10)
    frames = smooth_frames()
    warped = turn.apply(make_episode(0, 2, images={"scene": frames}, extra={})).images["scene"]
    y, x = np.mgrid[16:48, 16:48]
    old = turn.unplace(np.stack([(x + 0.5) / 64, (y + 0.5) / 64], axis=-1), 64, 64) * 64 - 0.5
    row, column = old[..., 1].astype(int), old[..., 0].astype(int)
    a, b = (old - np.floor(old))[..., ::-1][..., :1], (old - np.floor(old))[..., :1]
    f = frames[0].astype(float)
    expected = (1 - a) * ((1 - b) * f[row, column] + b * f[row, column + 1])
    expected += a * ((1 - b) * f[row + 1, column] + b * f[row + 1, column + 1])
    np.testing.assert_allclose(warped[0, 16:48, 16:48], expected, atol=1.5)


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_pictures_come_back_where_both_cameras_saw_them(seed):
    turn = CameraTurn.sample(np.random.default_rng(seed), "scene", angle=5, roll=8)
    frames = smooth_frames()
    episode = make_episode(0, 2, images={"scene": frames, "hand": frames}, extra={})
    back = turn.invert(turn.apply(episode))
    inside = np.s_[:, 16:48, 16:48]
    np.testing.assert_allclose(back.images["scene"][inside].astype(int), frames[inside], atol=4)
    np.testing.assert_array_equal(back.images["hand"], frames)
    assert not turn.exact


def test_no_turn_changes_nothing_and_what_was_not_seen_is_black():
    frames = smooth_frames()
    np.testing.assert_array_equal(warp(frames, np.eye(3)), frames)
    far = CameraTurn.build("scene", pan=40).apply(make_episode(0, 2, images={"scene": frames}, extra={}))
    assert (far.images["scene"][:, :, -2:] == 0).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CameraTurn("scene", ((1, 0, 0), (0, 2, 0), (0, 0, 1))), "3x3 rotation"),
        (lambda: CameraTurn("scene", ((-1, 0, 0), (0, 1, 0), (0, 0, 1))), "cannot be mirrored"),
        (lambda: CameraTurn.build("scene", pan=120), "looks away"),
        (lambda: CameraTurn.build("scene", zoom=0.0), "must be positive"),
        (lambda: CameraTurn.build("side", pan=1).apply(make_episode(0)), "no camera 'side'; it has scene"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
