"""How far bodies are from what was seen, and from what they were: the numbers of the page of results."""

import numpy as np
import page_changes
import pytest
from beyond import at

from selfalign.sim import regions
from selfalign.sim.bodies import sample_bodies, tightest_distance


def turned(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


@pytest.mark.parametrize("degrees", [0.0, 24.0, 106.0, 180.0])
def test_frames_turn_through_an_angle_or_are_mirrored(degrees: float):
    start = turned(37.0)[:, [2, 0, 1]]
    assert page_changes._angle(start, turned(degrees) @ start) == pytest.approx(degrees, abs=1e-4)
    assert np.isnan(page_changes._angle(start, np.diag([1.0, -1.0, 1.0]) @ start))


def test_the_nearest_source_is_across_the_guard():
    # The wedge around 17.5 degrees is 5 wide to either side, the guard 2.
    assert page_changes._to_source(17.5, regions.bearing_region) == pytest.approx(7.0, abs=0.11)
    assert page_changes._to_source(21.5, regions.bearing_region) == pytest.approx(3.0, abs=0.11)
    assert page_changes._to_source(0.0, regions.bearing_region) == pytest.approx(0.0, abs=0.06)
    # Frames: 15 to either side of 135 degrees, and 5; the other way round the circle is as near.
    assert page_changes._to_source(135.0, regions.turn_region) == pytest.approx(20.0, abs=0.11)


def test_cameras_beyond_are_on_their_side_and_see_the_workspace():
    for body in sample_bodies(4, 1, "heldout", "camera"):
        camera = at(body, 30.0).camera
        assert abs(camera.azimuth) == 100.0 and camera.azimuth * body.camera.azimuth > 0
        slack = camera.distance / tightest_distance(camera)
        assert slack == pytest.approx(body.camera.distance / tightest_distance(body.camera))
        assert 1.0 <= slack <= 1.12
        assert (camera.elevation, camera.lookat) == (body.camera.elevation, body.camera.lookat)
