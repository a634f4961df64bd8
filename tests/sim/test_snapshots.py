"""Snapshots: pictures of rigs of their own, with the places of what is in them."""

import numpy as np
import pytest

from selfalign.data.snapshots import Snapshots
from selfalign.sim import snapshots
from selfalign.sim.engine import COLOURS, Simulation
from selfalign.sim.prepare import CUBE_COLOURS
from selfalign.sim.snapshots import SnapshotPlan, arrange, generate_snapshots

PLAN = SnapshotPlan(count=10, image_size=32, seed=3)


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(snapshots, "PART", 2)


def test_recording_goes_on_where_it_stopped(small_parts, tmp_path, monkeypatch):
    whole = Snapshots.open(generate_snapshots(tmp_path / "whole", PLAN, workers=0))
    assert whole.images.shape == (10, 32, 32, 3) and whole.points.shape == (10, 7, 4)
    record, recorded = snapshots._record_part, []

    def interrupted(part):
        first = part.index not in recorded
        recorded.append(part.index)
        if part.index == 3 and first:
            raise KeyboardInterrupt
        record(part)

    monkeypatch.setattr(snapshots, "_record_part", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate_snapshots(tmp_path / "again", PLAN, workers=0)
    with pytest.raises(FileNotFoundError, match="its recording has not ended"):
        Snapshots.open(tmp_path / "again")
    again = Snapshots.open(generate_snapshots(tmp_path / "again", PLAN, workers=0))
    assert recorded == [0, 1, 2, 3, 3, 4]
    np.testing.assert_array_equal(again.images, whole.images)
    np.testing.assert_array_equal(again.points, whole.points)
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == ["images.npy", "plan.json", "points.npy"]
    with pytest.raises(ValueError, match="another plan"):
        generate_snapshots(tmp_path / "again", SnapshotPlan(10, 32, seed=4), workers=0)


def test_no_two_scenes_share_a_camera_or_a_look(small_parts, tmp_path, monkeypatch):
    rigs = []
    spec = snapshots.BodySpec
    monkeypatch.setattr(snapshots, "BodySpec", lambda *a, **k: rigs.append(spec(*a, **k)) or rigs[-1])
    generate_snapshots(tmp_path, PLAN, workers=0)
    assert len({rig.camera for rig in rigs}) == len({rig.wrist for rig in rigs}) == 5
    assert len({rig.appearance_seed for rig in rigs}) == 5
    assert {rig.arm for rig in rigs} == set(snapshots.SOURCE_ARMS)


def test_heldout_arms_are_in_no_snapshot():
    with pytest.raises(ValueError, match=r"may show the arms panda.*ur5e"):
        SnapshotPlan(arms=("panda", "ur5e"))


def test_labels_lie_on_what_they_name(tmp_path):
    plan = SnapshotPlan(count=40, image_size=64, seed=0)
    shots = Snapshots.open(generate_snapshots(tmp_path, plan, workers=0))
    hits = []
    for image, points in zip(shots.images, shots.points, strict=True):
        for colour, (u, v, visible, depth) in zip(COLOURS, points[1:5], strict=True):
            if visible:
                assert 0.03 < depth < 1.5
                pixel = image[min(int(v * 64), 63), min(int(u * 64), 63)].astype(float)
                hits.append(pixel.argmax() == np.argmax(CUBE_COLOURS[colour]) if colour != "yellow" else pixel[2] < 90)
    # What stands in front of a cube hides some.
    assert len(hits) > 60 and np.mean(hits) > 0.6


def test_arrangements_reach_everywhere_and_some_hold_a_cube():
    rng = np.random.default_rng(0)
    tips, held, tilted = [], 0, 0
    with Simulation("panda") as sim:
        for _ in range(200):
            arrange(sim, rng)
            tips.append(sim.tip)
            assert sim.tip[2] > 0.0
            held += any(np.linalg.norm(sim.cube_position(c) - sim.tip) < 1e-4 for c in sim.cubes)
            vertical = sim.data.site_xmat[sim._tip].reshape(3, 3)[2, 2]
            tilted += abs(vertical) < 0.9995
    low, high = np.min(tips, axis=0), np.max(tips, axis=0)
    assert (low < [-0.12, -0.12, 0.04]).all() and (high > [0.12, 0.12, 0.22]).all()
    assert 2 <= held <= 25 and 10 <= tilted <= 60
