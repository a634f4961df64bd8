import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from selfalign.data.normalize import FieldStats, NormStats, RunningStats


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1e4]))
@settings(max_examples=50, deadline=None)
def test_streamed_statistics_equal_numpy(sizes, seed, mean):
    sizes = [*sizes, 2]
    rng = np.random.default_rng(seed)
    values = (mean + rng.normal(size=(sum(sizes), 3)) * [1e-2, 1.0, 30.0]).astype(np.float32)
    running = RunningStats()
    for block in np.split(values, np.cumsum(sizes)[:-1]):
        running.update(block)
    stats, exact = running.finish(), values.astype(np.float64)
    assert stats.count == len(values)
    np.testing.assert_allclose(stats.mean, exact.mean(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(stats.std, exact.std(axis=0), rtol=1e-9)
    np.testing.assert_array_equal(stats.min, exact.min(axis=0))
    np.testing.assert_array_equal(stats.max, exact.max(axis=0))
    for name, level in (("q01", 0.01), ("q10", 0.1), ("q50", 0.5), ("q90", 0.9), ("q99", 0.99)):
        np.testing.assert_allclose(getattr(stats, name), np.quantile(exact, level, axis=0), rtol=1e-6, atol=1e-6)


@pytest.fixture
def arrays() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(3, 2, (500, 4)).astype(np.float32), rng.normal(-1, 0.1, (500, 5)).astype(np.float32)


def test_zscore_gives_unit_spread_and_inverts(arrays):
    state, action = arrays
    stats = NormStats.from_arrays(state, action)
    normal = stats.normalize_state(state)
    np.testing.assert_allclose(normal.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(normal.std(axis=0), 1, atol=1e-5)
    np.testing.assert_allclose(stats.unnormalize_state(normal), state, atol=1e-5)
    np.testing.assert_allclose(stats.unnormalize_action(stats.normalize_action(action)), action, atol=1e-6)
    assert normal.dtype == np.float32


def test_quantile_mode_maps_98_percent_into_the_unit_range(arrays):
    stats = NormStats.from_arrays(*arrays, mode="quantile")
    normal = stats.normalize_action(arrays[1])
    np.testing.assert_allclose(np.quantile(normal, [0.01, 0.99], axis=0), np.array([[-1], [1]]) * np.ones(5), atol=1e-5)
    np.testing.assert_allclose(stats.unnormalize_action(normal), arrays[1], atol=1e-6)


def test_tensors_and_arrays_agree(arrays):
    stats = NormStats.from_arrays(*arrays)
    tensor = stats.normalize_action(torch.from_numpy(arrays[1]).reshape(50, 10, 5))
    assert tensor.dtype == torch.float32
    np.testing.assert_allclose(tensor.numpy().reshape(-1, 5), stats.normalize_action(arrays[1]), atol=1e-6)


@pytest.mark.parametrize("mode", ["zscore", "quantile"])
def test_near_constant_dimensions_are_named_and_not_blown_up(arrays, mode):
    state, action = arrays
    state[:, 2] = 0.7
    action[:, 0] = 1e-8 * np.arange(500)
    with pytest.warns(UserWarning, match=r"state\[2\].*action\[0\]"):
        stats = NormStats.from_arrays(state, action, mode)
    moved = state.copy()
    moved[:, 2] += 0.1
    np.testing.assert_allclose(stats.normalize_state(moved)[:, 2], 0.1, atol=1e-5)
    np.testing.assert_allclose(stats.unnormalize_action(stats.normalize_action(action)), action, atol=1e-6)


def test_near_constant_dimensions_go_by_their_names(arrays):
    state, action = arrays
    state[:, 2] = 0.7
    stats = NormStats(FieldStats.from_array(state), FieldStats.from_array(action))
    with pytest.warns(UserWarning, match=r"state\[2\] elbow \(always about 0\.7\)"):
        assert len(stats.warn_near_constant(["pan", "lift", "elbow", "grip"], ["too", "few"])) == 1


@pytest.mark.parametrize("mode", ["zscore", "quantile"])
def test_clipping_bounds_what_the_model_sees_and_what_it_gives(arrays, mode):
    plain, stats = NormStats.from_arrays(*arrays, mode), NormStats.from_arrays(*arrays, mode, clip=1.5)
    normal = plain.normalize_state(arrays[0])
    np.testing.assert_array_equal(stats.normalize_state(arrays[0]), np.clip(normal, -1.5, 1.5))
    assert np.abs(normal).max() > 1.5 and stats.normalize_state(torch.from_numpy(arrays[0])).abs().max() == 1.5
    given = np.array([[-9.0, -1.0, 0.0, 1.0, 9.0]])
    np.testing.assert_allclose(stats.unnormalize_action(given), plain.unnormalize_action(np.clip(given, -1.5, 1.5)))
    again = NormStats.from_dict(json.loads(json.dumps(stats.to_dict())))
    assert again.clip == 1.5 and "clip" not in plain.to_dict()
    with pytest.raises(ValueError, match="clip must be positive"):
        NormStats.from_arrays(*arrays, clip=0.0)


def test_small_but_real_motion_is_scaled():
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1e-3, (100, 2)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stats = NormStats.from_arrays(values, values)
    assert stats.normalize_state(values).std() == pytest.approx(1, abs=0.05)


def test_json_keeps_every_number(arrays):
    stats = NormStats.from_arrays(*arrays, mode="quantile")
    again = NormStats.from_dict(json.loads(json.dumps(stats.to_dict())))
    np.testing.assert_array_equal(again.normalize_state(arrays[0]), stats.normalize_state(arrays[0]))
    assert again.mode == "quantile" and again.action.count == 500


def test_mistakes_are_named(arrays):
    stats = NormStats.from_arrays(*arrays)
    with pytest.raises(ValueError, match=r"4 state dimensions, the array has shape \[3, 5\]"):
        stats.normalize_state(np.zeros((3, 5), np.float32))
    bad = arrays[0].copy()
    bad[17, 2] = np.nan
    with pytest.raises(ValueError, match="frame 17, dimension 2"):
        FieldStats.from_array(bad)
    with pytest.raises(ValueError, match="no frame"):
        FieldStats.from_array(arrays[0][:0])


# ---- openpi's statistics -------------------------------------------------------------------------------------------

OPENPI = Path(__file__).parent / "openpi_units"


def test_statistics_of_a_stream_are_openpis():
    units = load_file(OPENPI / "units.safetensors")
    frames = units["runningstats.chunks"].reshape(-1, 3)
    running = RunningStats()
    for chunk in units["runningstats.chunks"]:
        running.update(chunk.reshape(-1, 3))
    stats = running.finish()
    np.testing.assert_allclose(stats.mean, units["runningstats.mean"], rtol=1e-12)
    np.testing.assert_allclose(stats.std, units["runningstats.std"], rtol=1e-12)
    # openpi's quantiles are edges of 5000 bins and moved when the range grows, ours are exact: both lie beside the
    # same frame of the sorted 640, which in the thin tails is as near as they get.
    ordered, bins = np.sort(frames, axis=0), np.ptp(frames, axis=0) / 5000
    for quantile, theirs in ((stats.q01, units["runningstats.q01"]), (stats.q99, units["runningstats.q99"])):
        place = (ordered <= quantile).sum(axis=0)
        low, high = (np.take_along_axis(ordered, place[None] + shift, axis=0)[0] for shift in (-2, 1))
        assert (low - 3 * bins <= theirs).all() and (theirs <= high + 3 * bins).all()


def test_openpis_file_is_written_as_it_was_read(tmp_path):
    stats = NormStats.read_openpi(OPENPI, "zscore")
    assert (stats.state_dim, stats.action_dim) == (2, 2)
    path = stats.write_openpi(tmp_path / "assets" / "droid")
    assert path.name == "norm_stats.json" and path.read_bytes() == (OPENPI / "norm_stats.json").read_bytes()


@pytest.fixture
def openpi_file(tmp_path) -> Path:
    """Statistics with everything, one dimension of the state constant."""
    state = {"mean": [1.0, 0.5, 2.0], "std": [2.0, 0.0, 0.25], "q01": [-3.0, 0.5, 1.0], "q99": [5.0, 0.5, 3.0]}
    actions = {"mean": [0.5], "std": [0.25], "q01": [0.0], "q99": [1.0]}
    path = tmp_path / "norm_stats.json"
    path.write_text(json.dumps({"norm_stats": {"state": state, "actions": actions}}))
    return path


@pytest.mark.parametrize("mode", ["zscore", "quantile"])
def test_normalisation_is_openpis(openpi_file, mode):
    stats, x = NormStats.read_openpi(openpi_file, mode), np.array([[0.3, 0.5, 2.2], [-1.0, 0.6, 9.0]])
    raw = json.loads(openpi_file.read_text())["norm_stats"]["state"]
    mean, std, q01, q99 = (np.array(raw[name]) for name in ("mean", "std", "q01", "q99"))
    expected = (x - mean) / (std + 1e-6) if mode == "zscore" else (x - q01) / (q99 - q01 + 1e-6) * 2.0 - 1.0
    np.testing.assert_allclose(stats.normalize_state(x), expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(stats.unnormalize_state(expected), x, rtol=1e-9, atol=1e-9)
    again = NormStats.from_dict(json.loads(json.dumps(stats.to_dict(), allow_nan=False)))
    np.testing.assert_array_equal(again.normalize_state(x), stats.normalize_state(x))


def test_padded_statistics_can_be_cut_to_the_robots_dimensions(openpi_file):
    stats = NormStats.read_openpi(openpi_file, "zscore", state_dim=2)
    assert stats.state_dim == 2 and stats.action_dim == 1
    with pytest.raises(ValueError, match="actions has 1 dimensions, 7 were asked for"):
        NormStats.read_openpi(openpi_file, "zscore", action_dim=7)


def test_what_is_no_openpi_file_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="assets/<asset_id>/"):
        NormStats.read_openpi(tmp_path, "zscore")
    with pytest.raises(ValueError, match=r"actions has no quantiles; .* mode='zscore'"):
        NormStats.read_openpi(OPENPI, "quantile")
    path = tmp_path / "norm_stats.json"
    for text in ("{", "[]", '{"norm_stats": {"state": {"mean": [0], "std": [1]}}}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"norm_stats.json is not openpi's"):
            NormStats.read_openpi(path, "zscore")
    field = '{"mean": [0, NaN], "std": [1, 1]}'
    path.write_text(f'{{"norm_stats": {{"state": {field}, "actions": {field}}}}}')
    with pytest.raises(ValueError, match="must be finite lists of one length"):
        NormStats.read_openpi(path, "zscore")


# ---- a LeRobot data set's statistics -------------------------------------------------------------------------------


def test_lerobots_file_is_read_and_written(arrays, tmp_path):
    state, action = arrays
    stats = NormStats.from_arrays(state, action, "quantile")
    file = tmp_path / "meta" / "stats.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"timestamp": {"mean": [1.0]}, "action": {"mean": [9.0], "q55": [1.0]}}))
    assert stats.write_lerobot(tmp_path) == file
    data = json.loads(file.read_text())
    assert data["timestamp"] == {"mean": [1.0]}
    assert set(data["action"]) == {"mean", "std", "min", "max", "q01", "q10", "q50", "q90", "q99", "count"}
    assert data["action"]["count"] == [500] and np.shape(data["observation.state"]["q50"]) == (4,)
    for path in (tmp_path, file):
        again = NormStats.read_lerobot(path, "quantile")
        np.testing.assert_array_equal(again.normalize_action(action), stats.normalize_action(action))
        assert again.state.count == 500


def test_lerobots_file_may_lack_quantiles_and_have_constant_dimensions(tmp_path):
    entry = {"min": [0.0, 1.0], "max": [1.0, 1.0], "mean": [0.4, 1.0], "std": [0.2, 0.0], "count": [7]}
    path = tmp_path / "stats.json"
    path.write_text(json.dumps({"observation.state": entry, "action": entry}))
    with pytest.warns(UserWarning, match=r"state\[1\].*action\[1\]"):
        stats = NormStats.read_lerobot(path)
    np.testing.assert_allclose(stats.normalize_state(np.array([0.6, 1.1])), [1.0, 0.1])
    with pytest.raises(ValueError, match=r"observation\.state has no quantiles"):
        NormStats.read_lerobot(path, "quantile")
    with pytest.raises(FileNotFoundError, match="selfalign stats"):
        NormStats.read_lerobot(tmp_path)
    path.write_text('{"action": {}}')
    with pytest.raises(ValueError, match=r"stats.json has no statistics of observation.state and action"):
        NormStats.read_lerobot(path)


@pytest.mark.parametrize("mode", ["zscore", "quantile"])
def test_a_large_number_that_only_rounds_is_near_constant(mode):
    values = np.random.default_rng(0).normal(size=(200, 2))
    values[:, 0] = 1e4 + 1e-3 * values[:, 0]
    with pytest.warns(UserWarning, match=r"state\[0\] .*action\[0\]"):
        stats = NormStats.from_arrays(values, values, mode)
    np.testing.assert_allclose(np.ptp(stats.normalize_state(values)[:, 0]), np.ptp(values[:, 0]), rtol=1e-3)
