import json

import numpy as np
import pytest

from selfalign.bench.stats import (
    Interval,
    amount_to_reach,
    bootstrap_mean,
    bootstrap_ratio,
    expanded,
    mean_success,
    rank_correlation,
    wilson,
)


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


@pytest.mark.parametrize("units", [8, 12])
def test_bootstrap_covers_the_mean_of_few_units_as_often_as_it_says(units: int):
    """The plain percentiles cover it in 90 % of cases or less."""
    rng = np.random.default_rng(2)
    intervals = [bootstrap_mean(rng.uniform(0.6, 1.0, size=units), draws=1000) for _ in range(1500)]
    assert 0.93 < np.mean([one.low <= 0.8 <= one.high for one in intervals]) < 0.97


def test_expanded_percentiles_make_the_interval_of_student():
    values = np.random.default_rng(3).normal(0.5, 0.1, size=9)
    found, half = bootstrap_mean(values, draws=200_000), 2.306 * values.std(ddof=1) / 3  # t of 8 degrees of freedom
    assert found.low == pytest.approx(values.mean() - half, abs=0.12 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.12 * half)


def test_success_is_never_surer_than_its_episodes():
    def results(*successes: int) -> list[dict]:
        return [{"value": count / 20, "successes": count, "episodes": 20} for count in successes]

    none = mean_success(results(*[0] * 12))
    assert none == Interval(0.0, 0.0, wilson(0, 240).high)
    spread = mean_success(results(20, 2, 15, 9, 0, 18))
    plain = bootstrap_mean([1.0, 0.1, 0.75, 0.45, 0.0, 0.9])
    assert spread == plain
    assert mean_success(results(7)) == Interval(0.35, None, None)


def test_bootstrap_is_deterministic_and_narrow_without_spread():
    assert bootstrap_mean([0.2, 0.9, 0.4], seed=3) == bootstrap_mean([0.2, 0.9, 0.4], seed=3)
    assert bootstrap_mean([0.7] * 5) == Interval(pytest.approx(0.7), pytest.approx(0.7), pytest.approx(0.7))


def test_one_unit_has_no_interval():
    interval = bootstrap_mean([0.4])
    assert interval == Interval(0.4, None, None)
    assert interval.percent() == "40 %" and interval.points() == "+40"
    assert Interval(-0.12, -0.2, 0.03).points() == "-12 [-20, +3]"


@pytest.mark.parametrize("values", [[], [0.5, float("nan")]])
def test_bootstrap_refuses_nothing_and_nan(values: list[float]):
    with pytest.raises(ValueError, match="finite"):
        bootstrap_mean(values)


def test_ratio_of_means():
    interval = bootstrap_ratio([0.9, 0.8, 1.0], [1.0, 1.0, 0.9, 0.9])
    assert interval.value == pytest.approx(0.9 / 0.95)
    assert interval.low < interval.value < interval.high
    alone = bootstrap_ratio([0.8], [1.0, 0.9])
    assert alone.value == pytest.approx(0.8 / 0.95) and alone.low is alone.high is None, "one body has no spread"
    with pytest.raises(ValueError, match="mean is 0"):
        bootstrap_ratio([1.0], [0.0, 0.0])


@pytest.mark.parametrize("units, quantile", [((400, 300), 1.96), ((6, 40), 2.816), ((40, 6), 2.816)])
def test_a_ratios_interval_is_that_of_the_delta_method(units: tuple[int, int], quantile: float):
    """Widened as for the smaller group: sqrt(6 / 5) times t of 5 degrees of freedom."""
    rng = np.random.default_rng(4)
    top, bottom = rng.normal(0.8, 0.1, size=units[0]), rng.normal(0.9, 0.1, size=units[1])
    found, ratio = bootstrap_ratio(top, bottom, draws=100_000), top.mean() / bottom.mean()
    half = quantile * ratio * np.sqrt(sum(x.var() / len(x) / x.mean() ** 2 for x in (top, bottom)))
    assert found.value == pytest.approx(ratio)
    assert found.low == pytest.approx(ratio - half, abs=0.12 * half)
    assert found.high == pytest.approx(ratio + half, abs=0.12 * half)


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


def plainly_reached(curve: dict[int, list[float]], top: list[float], share: float) -> int | None:
    return next((n for n in sorted(curve) if sum(curve[n]) / len(curve[n]) >= share * sum(top) / len(top)), None)


def test_the_least_amount_that_reaches_a_share_of_the_ceiling():
    curve = {100: [0.9, 0.8, 1.0], 1: [0.0, 0.2, 0.1], 10: [0.8, 0.9, 0.85]}
    for top in ([0.9, 0.95], [1.0, 1.0], [1.0, 1.2], [0.05, 0.1]):
        assert amount_to_reach(curve, top).value == plainly_reached(curve, top, 0.9)
    assert amount_to_reach(curve, [1.0, 1.2]).value is None


def test_its_interval_is_that_of_a_plain_bootstrap():
    rng = np.random.default_rng(3)
    curve = {n: np.clip(rng.normal(0.2 * np.log2(n + 1), 0.3, size=6), 0, 1).tolist() for n in (1, 3, 10, 30)}
    top = [0.7, 0.9, 0.8, 1.0]
    draws = []
    for _ in range(2000):
        rows, tops = rng.integers(6, size=6), rng.integers(4, size=4)
        drawn = {n: [values[i] for i in rows] for n, values in curve.items()}
        draws.append(plainly_reached(drawn, [top[i] for i in tops], 0.9))
    found = amount_to_reach(curve, top)
    order = sorted(draws, key=lambda n: 1e9 if n is None else n)
    least, most = (order[round(end * 1999)] for end in expanded(0.95, 6))
    assert (found.low, found.high) == (least, most)
    assert found.share == pytest.approx(sum(n is not None for n in draws) / len(draws), abs=0.04)


def test_the_ceilings_bodies_are_drawn_too_and_the_curves_are_the_same_at_every_amount():
    # The mean of two draws from the ceiling is 0.2, 0.6 or 1.0; only under the first, a quarter of them, is 0.5 enough.
    assert amount_to_reach({1: [0.5] * 6}, [0.2, 1.0]).share == pytest.approx(0.25, abs=0.02)
    # What one amount gives to a body the other does not: of the same bodies, one of the two means is 0.5 or more.
    opposite = {1: [0.0, 1.0] * 3, 2: [1.0, 0.0] * 3}
    assert amount_to_reach(opposite, [0.55, 0.55]).share == 1.0


def test_nothing_gets_to_a_share_of_a_ceiling_of_zero():
    found = amount_to_reach({1: [0.0, 0.0], 3: [0.1, 0.2]}, [0.0, 0.0])
    assert (found.value, found.low, found.high, found.share) == (None, None, None, 0.0)


def test_one_body_says_nothing_of_the_spread_and_a_curve_needs_the_same_bodies():
    found = amount_to_reach({1: [0.0], 3: [1.0]}, [1.0])
    assert (found.value, found.low, found.high) == (3, None, None)
    for curve, top in (({}, [1.0]), ({1: [0.0], 2: [0.0, 1.0]}, [1.0]), ({1: [0.0]}, [])):
        with pytest.raises(ValueError, match="the same bodies at every amount"):
            amount_to_reach(curve, top)
