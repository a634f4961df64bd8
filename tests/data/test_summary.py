import numpy as np
import pytest

from data.factory import BODIES, make_episode
from selfalign.data.lerobot import LeRobotWriter
from selfalign.data.sources import SourceData
from selfalign.data.summary import BINS, DataSummary, histograms, sparkline

NAMES = {"action": ["x", "y", "z", "gripper"]}


@pytest.fixture(scope="module")
def episodes():
    return [make_episode(seed, length=8 + seed) for seed in range(5)]


@pytest.fixture(scope="module")
def summary(tmp_path_factory, episodes):
    root = tmp_path_factory.mktemp("summary") / "data"
    with LeRobotWriter(root, embodiments=BODIES, names=NAMES) as writer:
        for episode in episodes:
            writer.add_episode(episode)
    return DataSummary.of(SourceData.open(root))


def test_counts_are_those_of_the_episodes(summary, episodes):
    assert summary.lengths.tolist() == [len(e) for e in episodes] and summary.frames == sum(map(len, episodes))
    assert summary.seconds == pytest.approx(summary.frames / 20)
    for index, body in enumerate(summary.bodies):
        own = [e for e in episodes if e.embodiment_index == index]
        assert body.name == BODIES[index]["name"]
        assert (body.play, body.frames) == (sum(e.is_play for e in own), sum(map(len, own)))
        assert body.play + body.demonstrations == len(own)
    assert dict(summary.tasks) == {"reach the red cube": 2, "lift the green cube": 1}
    (camera,) = summary.cameras
    assert (camera.name, camera.height, camera.width, camera.stored) == ("scene", 16, 24, "image")
    assert set(summary.extra) == {"observation.joints", "privileged.points", "grasped"}


def test_ranges_and_histograms_are_numpys(summary, episodes):
    state, action = summary.columns
    assert state.names == ("0", "1", "2", "3") and action.names == tuple(NAMES["action"])
    for column, values in (
        (state, np.concatenate([e.state for e in episodes])),
        (action, np.concatenate([e.action for e in episodes])),
    ):
        np.testing.assert_allclose(column.stats.min, values.min(0), rtol=1e-6)
        np.testing.assert_allclose(column.stats.max, values.max(0), rtol=1e-6)
        np.testing.assert_allclose(column.stats.mean, values.mean(0), atol=1e-6)
        for dim in range(4):
            expected, _ = np.histogram(values[:, dim].astype(np.float64), BINS)
            np.testing.assert_array_equal(column.histogram[dim], expected)
        assert column.broken == 0


def test_frames_with_nan_are_counted_and_left_out(tmp_path):
    episode = make_episode(0)
    episode.action[3, 1] = np.nan
    with LeRobotWriter(tmp_path / "data") as writer:
        writer.add_episode(episode)
    _, action = DataSummary.of(SourceData.open(tmp_path / "data")).columns
    good = np.delete(episode.action, 3, axis=0)
    assert action.broken == 1 and action.histogram.sum() == 4 * len(good)
    np.testing.assert_allclose(action.stats.max, good.max(0), rtol=1e-6)


def test_a_column_without_a_finite_frame_has_no_range(tmp_path):
    episode = make_episode(0)
    episode.state[:, 0] = np.inf
    with LeRobotWriter(tmp_path / "data") as writer:
        writer.add_episode(episode)
    state, _ = DataSummary.of(SourceData.open(tmp_path / "data")).columns
    assert state.stats is None and state.broken == len(episode)


def test_a_constant_dimension_is_one_bin():
    counts = histograms(np.full((5, 1), 3.0), np.array([3.0]), np.array([3.0]))
    assert counts[0, 0] == 5 and counts.sum() == 5


def test_sparklines_show_the_rare_and_the_absent():
    assert sparkline([0, 1, 500, 1000]) == " ▁▄█"
