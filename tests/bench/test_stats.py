import json

import numpy as np
import pytest

from selfalign.bench.stats import Interval, bootstrap_mean, bootstrap_ratio, rank_correlation, wilson


# R: prop.test(x, n, correct = FALSE)$conf.int
@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(8, 10, 0.4901625, 0.9433178), (0, 20, 0.0, 0.1611252), (20, 20, 0.8388748, 1.0), (81, 263, 0.2552877, 0.3662)],
)
def test_wilson_agrees_with_published_values(successes: int, trials: int, low: float, high: float):
    interval = wilson(successes, trials)
    assert interval.value == successes / trials
    assert interval.low == pytest.approx(low, abs=2e-5)
    assert interval.high == pytest.approx(high, abs=2e-5)


@pytest.mark.parametrize(("successes", "trials"), [(1, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_what_is_no_proportion(successes: int, trials: int):
    with pytest.raises(ValueError, match="successes"):
        wilson(successes, trials)


def test_wilson_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    draws = rng.binomial(20, 0.9, size=2000)
    covered = np.mean([wilson(int(k), 20).low <= 0.9 <= wilson(int(k), 20).high for k in draws])
    assert 0.92 < covered < 0.99


def test_bootstrap_is_near_the_normal_interval_for_many_units():
    values = np.random.default_rng(1).normal(0.5, 0.2, size=400)
    interval = bootstrap_mean(values)
    half = 1.96 * values.std(ddof=1) / 20
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_bootstrap_is_deterministic_and_narrow_without_spread():
    assert bootstrap_mean([0.2, 0.9, 0.4], seed=3) == bootstrap_mean([0.2, 0.9, 0.4], seed=3)
    assert bootstrap_mean([0.7] * 5) == Interval(pytest.approx(0.7), pytest.approx(0.7), pytest.approx(0.7))


def test_one_unit_has_no_interval():
    interval = bootstrap_mean([0.4])
    assert interval == Interval(0.4, None, None)
    assert interval.percent() == "40 %"


@pytest.mark.parametrize("values", [[], [0.5, float("nan")]])
def test_bootstrap_refuses_nothing_and_nan(values: list[float]):
    with pytest.raises(ValueError, match="finite"):
        bootstrap_mean(values)


def test_ratio_of_means():
    interval = bootstrap_ratio([0.9, 0.8, 1.0], [1.0, 1.0, 0.9, 0.9])
    assert interval.value == pytest.approx(0.9 / 0.95)
    assert interval.low < interval.value < interval.high
    with pytest.raises(ValueError, match="mean is 0"):
        bootstrap_ratio([1.0], [0.0, 0.0])


def test_a_ratio_whose_denominator_may_be_zero_has_no_upper_end():
    interval = bootstrap_ratio([0.5, 0.5], [0.2, 0.0])
    assert interval.value == pytest.approx(5.0) and interval.high is None
    assert json.loads(json.dumps(interval.to_dict(), allow_nan=False))["high"] is None


def test_rank_correlation_reads_order_and_shares_ties():
    assert rank_correlation([1, 2, 3, 4], [1, 8, 27, 64]) == pytest.approx(1.0)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1.0)
    # scipy.stats.spearmanr([1, 2, 2, 3], [1, 3, 2, 4]).statistic
    assert rank_correlation([1, 2, 2, 3], [1, 3, 2, 4]) == pytest.approx(0.9486832980505138)
    assert rank_correlation([1, 2], [1, 2]) is None
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None


def test_percent_is_short():
    assert wilson(8, 10).percent() == "80 % [49, 94]"
