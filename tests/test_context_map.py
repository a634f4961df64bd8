"""What is read out of contexts is what a plain ridge regression reads."""

import context_map
import numpy as np
import pytest

pytest.importorskip("matplotlib")


def plain_ridge(known, wanted, new, ridge):
    """By least squares with the ridge as further rows."""
    mean, middle = known.mean(0), wanted.mean(0)
    rows = np.vstack([known - mean, np.sqrt(ridge) * np.eye(known.shape[1])])
    values = np.vstack([wanted - middle, np.zeros((known.shape[1], wanted.shape[1]))])
    return middle + (new - mean) @ np.linalg.lstsq(rows, values, rcond=None)[0]


def test_predictions_are_those_of_ridge_regression_on_the_other_bodies(monkeypatch):
    rng = np.random.default_rng(0)
    vectors, values = rng.normal(size=(9, 5)), rng.normal(size=(9, 2))
    monkeypatch.setattr(context_map, "RIDGES", np.array([0.3]))
    found = context_map.predicted(vectors, values[:, None])[:, 0]
    for left in range(9):
        others = np.delete(vectors, left, axis=0)
        ridge = 0.3 * np.square(others - others.mean(0)).sum() / 8
        expected = plain_ridge(others, np.delete(values, left, axis=0), vectors[left], ridge)
        np.testing.assert_allclose(found[left], expected, rtol=1e-9)


def test_what_is_there_is_read_out_and_what_is_not_is_not(monkeypatch):
    rng = np.random.default_rng(1)
    there, elsewhere = rng.normal(size=(40, 3)), rng.normal(size=(40, 1))
    vectors = there @ rng.normal(size=(3, 500)) + 0.1 * rng.normal(size=(40, 500))
    monkeypatch.setattr(context_map, "SHUFFLES", 20)
    found = context_map.readouts(vectors, {"there": there, "elsewhere": elsewhere})
    assert found["there"]["r2"] > 0.95 > 0.3 > found["there"]["by_chance"]
    assert found["elsewhere"]["r2"] < 0.3


def test_the_length_of_a_row_of_a_frame_is_not_told():
    bodies = context_map.sample_bodies(12, 5, "source", "all")
    told = context_map.properties(bodies)
    assert told["action frame"].shape == (12, 9)
    np.testing.assert_allclose(np.linalg.norm(told["action frame"].reshape(12, 3, 3), axis=2), 1)
    assert (told["arm"].sum(1) == 1).all()
