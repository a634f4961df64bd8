"""The curve of a calibration against the definition of isotonic regression, and its intervals against known truths."""

import numpy as np
import pytest

from bench.attempting import attempt, drawn_attempts, true_success
from selfalign.bench.expectation import fit_calibration
from selfalign.bench.stats import wilson


def fitted(attempts, **options):
    told = {"fingerprint": "0123", "task": "reach", "source": {}, "play_frames": 1000, "draws": 200}
    return fit_calibration(attempts, **{**told, **options})


def decreasing_regression(values: np.ndarray, weights: np.ndarray) -> list[float]:
    """By its min-max formula: the least, over starts, of the greatest mean from a start at or before i to an end at or
    after i."""
    count = range(len(values))
    means = {(k, m): np.average(values[k : m + 1], weights=weights[k : m + 1]) for k in count for m in count if k <= m}
    return [min(max(means[k, m] for m in count if m >= i) for k in count if k <= i) for i in count]


def test_curve_is_the_isotonic_regression_of_groups_of_like_losses():
    attempts = drawn_attempts(np.random.default_rng(0))
    calibration = fitted(attempts)
    ordered = sorted(attempts, key=lambda a: a.loss)
    groups = np.array_split(np.arange(100), len(calibration.loss))
    shares = np.array([np.mean([ordered[i].success for i in group]) for group in groups])
    sizes = np.array([len(group) for group in groups], dtype=float)
    np.testing.assert_allclose(calibration.success, decreasing_regression(shares, sizes), atol=1e-5)
    np.testing.assert_allclose(calibration.loss, [np.mean([ordered[i].loss for i in g]) for g in groups], atol=1e-5)
    np.testing.assert_allclose(
        calibration.action_loss, [np.mean([ordered[i].action_loss for i in g]) for g in groups], atol=1e-5
    )
    assert calibration.seen == pytest.approx(
        (min(x := [a.loss for a in attempts if a.kind == "aligned"]), max(x)), abs=1e-5
    )
    assert (calibration.bodies, calibration.attempts, calibration.episodes) == (20, 100, 1000)
    assert calibration.before.success == 0 and calibration.before.high == pytest.approx(wilson(0, 200).high, abs=1e-5)


def test_what_was_seen_is_where_bodies_acted_better():
    attempts = drawn_attempts(np.random.default_rng(0))
    late = attempt(3.3, 5, kind="late")  # no proper alignment
    failed, no_better = attempt(3.1, 0, kind="short"), attempt(2.8, 4, kind="short", before=0.4)
    assert fitted([*attempts, failed, no_better, late]).seen == fitted(attempts).seen
    assert fitted([*attempts, attempt(2.25, 4, kind="short")]).seen[1] == 2.25
    assert fitted([*attempts, attempt(0.31, 9, kind="axes")]).seen[0] == 0.31, "play that is easier to explain"
    hopeless = [attempt(1.0 + 0.1 * i, 0, body=str(i % 5)) for i in range(10)]
    hopeless += [attempt(4.0, 0, kind="before", body=str(i)) for i in range(5)]
    assert fitted(hopeless).seen == (1.0, 1.9), "where nobody acts better, it is where alignment ended"


def test_ample_play_is_that_of_proper_alignment_to_much_of_it():
    attempts = drawn_attempts(np.random.default_rng(0))
    worst = max(a.loss for a in attempts if a.kind == "aligned")
    short, late, failed = attempt(3.2, 9, kind="short"), attempt(3.1, 9, kind="late"), attempt(3.0, 0)
    ample = fitted([*attempts, short, late, failed]).ample
    assert ample is not None and (ample.frames, ample.loss) == (1000, pytest.approx(worst, abs=1e-5))
    slower = fitted([*attempts, attempt(1.25, 9, kind="axes")], play_frames=300).ample
    assert slower is not None and (slower.frames, slower.loss) == (300, 1.25)
    hopeless = [attempt(1.0 + 0.1 * i, 0, body=str(i % 5)) for i in range(10)]
    hopeless += [attempt(4.0, 0, kind="before", body=str(i)) for i in range(5)]
    assert fitted(hopeless).ample is None, "nobody acted better"


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    inside = []
    for seed in range(12):
        calibration = fitted(drawn_attempts(np.random.default_rng(seed), bodies=30), draws=100)
        for loss in (0.9, 1.3, 3.0):
            expected = calibration.expect(loss)
            inside.append(expected.low - 0.02 <= true_success(loss) <= expected.high + 0.02)
    assert np.mean(inside) >= 0.85


def test_bodies_that_differ_make_the_interval_wider_than_their_episodes_would():
    """Half of the bodies always succeed and half never: 20 episodes of each tell of two kinds of bodies, not of 200."""
    attempts = [attempt(1.0 + 0.01 * i, 20 * (i % 2), episodes=20, body=str(i)) for i in range(10)]
    attempts += [attempt(4.0, 0, episodes=20, kind="before", body=str(i)) for i in range(10)]
    expected = fitted(attempts, draws=1000).expect(1.0)
    pooled = wilson(100, 200)
    assert expected.high - expected.low > 1.5 * (pooled.high - pooled.low)


def test_the_interval_has_the_level_that_is_asked_for():
    attempts = [attempt(1.0 + 0.01 * i, 20 * (i % 2), episodes=20, body=str(i)) for i in range(40)]
    attempts += [attempt(4.0, 0, episodes=20, kind="before", body=str(i)) for i in range(40)]
    widths = [(e := fitted(attempts, level=level, draws=4000).expect(1.0)).high - e.low for level in (0.5, 0.95)]
    assert widths[1] / widths[0] == pytest.approx(1.96 / 0.674, rel=0.2)  # of a normal distribution


@pytest.mark.parametrize("seed", range(8))
def test_ends_fall_as_the_curve_does(seed: int):
    calibration = fitted(drawn_attempts(np.random.default_rng(seed), bodies=8, episodes=2), draws=30)
    for values in (calibration.low, calibration.success, calibration.high):
        assert all(np.diff(values) <= 0)


def test_losses_that_one_body_alone_has_are_not_those_of_the_others():
    """Where a draw of bodies has none of them, the curve's own end stands."""
    attempts = [attempt(0.5 + 0.01 * i, 20, episodes=20, body="a") for i in range(6)]
    attempts += [attempt(2.0 + 0.01 * i, 10, episodes=20, body=str(i % 3)) for i in range(12)]
    attempts += [attempt(4.0 + 0.01 * i, 0, episodes=20, kind="before", body=str(i % 3)) for i in range(6)]
    calibration = fitted(attempts, draws=1000)
    assert calibration.success[0] == 1.0 and calibration.low[0] == pytest.approx(wilson(120, 120).low, abs=1e-5)


def test_there_are_so_many_groups_and_no_more():
    many = drawn_attempts(np.random.default_rng(0), bodies=60)
    assert len(fitted(many, draws=5).loss) == 24 and len(fitted(many[:50], draws=5).loss) == 8


def test_success_everywhere_still_leaves_an_interval():
    attempts = [attempt(1.0, 10, body=str(i)) for i in range(6)]
    attempts += [attempt(4.0, 0, kind="before", body=str(i)) for i in range(6)]
    expected = fitted(attempts).expect(1.0)
    assert (expected.success, expected.high) == (1.0, 1.0)
    assert expected.low == pytest.approx(wilson(60, 60).low, abs=1e-5)


def test_what_is_not_finite_is_left_out_and_too_little_is_refused():
    attempts = drawn_attempts(np.random.default_rng(1))
    assert fitted([*attempts, attempt(float("nan"), 0, kind="late")]) == fitted(attempts)
    with pytest.raises(ValueError, match="20 of 20 bodies, 0 aligned and 20 before"):
        fitted([a for a in attempts if a.kind == "before"])
    with pytest.raises(ValueError, match="a calibration needs 12 attempts"):
        fitted(attempts[:5])


def test_the_same_attempts_give_the_same_calibration():
    attempts = drawn_attempts(np.random.default_rng(2))
    assert fitted(attempts) == fitted(attempts[::-1])
