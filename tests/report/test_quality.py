"""Verdicts are counted as they are, and areas are shares of pairs."""

from pathlib import Path

import numpy as np
import pytest
from scipy.integrate import trapezoid

from bench.attempting import adapt_result, adapt_row, attempt, drawn_attempts, matrix_result, outcome, write
from calibrations import make_calibration
from selfalign.align.verdict import judge
from selfalign.bench.attempts import AT, RETURNED_PRIOR, read_attempts
from selfalign.bench.expectation import fit_calibration
from selfalign.calibration import Ample
from selfalign.report.quality import (
    area,
    by_kind,
    confusion,
    expected_success,
    fitted,
    gained,
    judged,
    loss_drop,
    reliability,
    roc,
)
from selfalign.report.reading import read_cells


def test_attempts_are_sorted_by_verdict_and_gain():
    good, lucky, missed, poor = (
        attempt(1.0, 9, body="good"),
        attempt(1.0, 2, body="lucky", before=0.2),
        attempt(4.0, 5, body="missed"),
        attempt(5.0, 0, body="poor"),
    )
    found = confusion([good, lucky, missed, poor, attempt(4.0, 0, kind="before")])
    assert found.true_accepts == (good,)
    assert found.false_accepts == (lucky,), "as often as before is no gain"
    assert found.false_rejects == (missed,)
    assert found.true_rejects == (poor,)
    assert found.operating_point == (0.5, 0.5)
    assert confusion([good]).operating_point is None


def test_random_updates_are_counted_apart():
    drawn = [
        *drawn_attempts(np.random.default_rng(0)),
        *(attempt(4.1, 0, kind="random", body=str(i)) for i in range(9)),
    ]
    counts = {kind: found.counts for kind, found in by_kind(drawn).items()}
    assert list(counts) == ["aligned", "after_1", "random"] and counts["random"] == (0, 0, 0, 9)
    assert tuple(map(sum, zip(*counts.values(), strict=True))) == confusion(drawn).counts
    assert {a.kind for a in fitted(drawn)} == {"before", "aligned", "after_1"}


def test_area_is_the_share_of_pairs_in_the_right_order():
    rng = np.random.default_rng(0)
    scores, good = rng.integers(0, 5, 40).astype(float), rng.random(40) < 0.5
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[good] for b in scores[~good]]
    assert area(scores, good) == pytest.approx(np.mean(pairs))


def test_roc_of_a_perfect_a_reversed_and_a_mixed_score():
    attempts = [attempt(1.0 + 0.1 * i, 9, body=f"g{i}") for i in range(5)]
    attempts += [attempt(3.0 + 0.1 * i, 0, body=f"b{i}") for i in range(5)]
    perfect, reverse = roc(attempts, loss_drop), roc(attempts, lambda a: -loss_drop(a))
    assert perfect is not None and reverse is not None
    assert (perfect.area.value, perfect.area.low, reverse.area.value) == (1.0, 1.0, 0.0)
    mixed = drawn_attempts(np.random.default_rng(0))
    curve = roc(mixed, loss_drop)
    assert curve is not None
    # The trapezoids below the curve add up to the share of pairs.
    assert trapezoid(curve.accept_rate, curve.false_accept_rate) == pytest.approx(curve.area.value)
    assert curve.area.low < curve.area.value < curve.area.high
    assert roc([a for a in mixed if gained(a)], loss_drop) is None


def test_without_a_play_loss_nothing_drops():
    assert loss_drop(attempt(0.0, 0, prior_loss=0.0)) == 0.0


def test_expected_success_is_measured_where_the_calibration_is_right():
    rng = np.random.default_rng(0)
    told = {"fingerprint": "0123", "task": "reach", "source": {}, "play_frames": 1000}
    calibration = fit_calibration(drawn_attempts(rng, bodies=60), **told, draws=50)
    wide = make_calibration(
        loss=calibration.loss,
        success=calibration.success,
        low=calibration.low,
        high=calibration.high,
        action_loss=calibration.action_loss,
        seen=(0.1, 9.0),
    )
    others = drawn_attempts(rng, bodies=60)
    judged = [attempt(a.loss, a.successes, kind=a.kind, body=a.body, calibration=wide) for a in others]
    points = reliability(judged)
    assert len(points) == 8
    for point in points:
        assert point.expected == pytest.approx(point.measured.value, abs=0.12)
    assert reliability(others) == [], "without a calibration nothing is expected"
    assert np.isnan(expected_success(others[0])) and roc(others, expected_success) is None
    # Attempts without a calibration, among others with one, have no place on its curve.
    alone, among = roc(judged, expected_success), roc([*others, *judged], expected_success)
    assert alone is not None and among is not None and alone.area == among.area
    beyond = attempt(9.0, 0, calibration=calibration)
    assert expected_success(beyond) == calibration.success[-1] and not beyond.verdict.accepted


def test_rows_of_adapt_hold_attempts_with_verdicts():
    found = {a.kind: a for a in read_attempts(adapt_row(1), "cell")}
    assert set(found) == {"aligned", "after_10", "after_30", "random"}
    assert found["after_10"].verdict == judge(3.0, 1.2, 4.0)
    assert (found["after_10"].gain, found["random"].gain) == (pytest.approx(0.7), pytest.approx(-0.1))
    assert found["aligned"].verdict.accepted and not found["random"].verdict.accepted
    assert (found["aligned"].action_loss, found["after_10"].action_loss) == (0.2, None)
    anew = {a.kind: a for a in read_attempts(adapt_row(1), "cell", make_calibration(seen=(1.15, 1.2)))}
    assert anew["after_10"].verdict.expected is not None
    assert (
        "outside"
        in {a.kind: a for a in read_attempts(adapt_row(0), "", make_calibration(seen=(1.5, 1.6)))}[
            "aligned"
        ].verdict.reason
    )
    assert list(read_attempts(adapt_row(0, "source"), "cell")) == []


def test_where_a_fit_was_rejected_the_body_acted_under_the_prior():
    row = adapt_row(1)
    row["verdict"] |= {"accepted": False, "reason": "outside what this checkpoint has seen"}
    assert {a.kind for a in read_attempts(row, "")} == {"after_10", "after_30", "random"}
    rejected, accepted = judge(3.0, 5.0, 4.0).to_dict(), judge(3.0, 1.0, 4.0).to_dict()
    named = {"name": "a", "success": adapt_row(0)["success"]}
    told = {**named, "verdicts": {"aligned": rejected, "after_10": accepted}}
    assert {a.kind for a in read_attempts(told, "")} == {"aligned", "after_10"}, "as bench calibrate acts"
    assert {a.kind for a in read_attempts({**told, RETURNED_PRIOR: ["aligned"]}, "")} == {"after_10"}


def test_what_was_seen_while_fitting_is_not_forgotten_where_a_calibration_judges_anew():
    calibration, broke = make_calibration(), "the loss was not finite at step 7; lower the learning rate"
    verdicts = {"aligned": judge(3.0, 1.0, 4.0), "after_1": judge(3.0, 1.0, 4.0, problem=broke)}
    verdicts |= {"late": judge(3.0, 1.0, 4.0, calibration=make_calibration(seen=(0.1, 0.2)))}
    row = {"name": "a", "success": {key: {"successes": 5, "episodes": 10} for key in ["before", *verdicts]}}
    row["verdicts"] = {kind: verdict.to_dict() for kind, verdict in verdicts.items()}
    found = {a.kind: a.verdict for a in read_attempts(row, "", calibration)}
    assert found["aligned"].accepted and found["after_1"].reason == broke
    assert found["late"].accepted, "the objection was another calibration's"


def test_a_calibration_that_judges_anew_doubts_what_had_much_play():
    calibration = make_calibration(ample=Ample(1000, 1.0))
    kinds = ("aligned", "late", "short", "selfalign@3", "selfalign@30")
    row = {"name": "a", "success": {key: {"successes": 5, "episodes": 10} for key in ["before", *kinds]}}
    row["verdicts"] = dict.fromkeys(kinds, judge(3.0, 1.2, 4.0).to_dict())
    for play in (20, [3, 20]):
        told = read_attempts(row, "", calibration, {"play": play, "play_length": 50})
        assert [a.kind for a in told if a.verdict.doubt] == ["aligned", "late", "selfalign@30"]
    assert not any(
        a.verdict.doubt
        for a in read_attempts(row, "", calibration, {"play": 19, "play_length": 50})
        if AT not in a.kind
    )


def test_an_attempt_is_known_by_its_play_and_by_how_it_was_tried(tmp_path: Path):
    def cells(name: str, amounts: dict[str, int], **settings):
        """Aligning with so much play, as it is called, and its success."""
        matrix = matrix_result()
        told = {
            "play": [int(amount) for amount in amounts],
            "play_length": 50,
            "execute": 4,
            "num_steps": 10,
            **settings,
        }
        entry = next(entry for entry in matrix["cells"] if entry["settings"]["method"] == "selfalign")
        for body in entry["bodies"]:
            result = body["results"]["20"]
            body["results"] = {amount: {**result, "success": outcome(level)} for amount, level in amounts.items()}
        frozen = matrix["cells"][0]
        for one in (frozen, entry):
            one["settings"] |= told
        return read_cells([write(tmp_path / f"{name}.json", {**matrix, "cells": [frozen, entry]})])

    little, much, curve = cells("little", {"20": 7}), cells("much", {"100": 9}), cells("curve", {"20": 7, "100": 9})
    for order in ([*little, *much], [*much, *little], [*curve, *little, *much], [*little, *curve]):
        assert sorted(a.successes for a in judged(order)) == [7, 7, 9, 9], "two bodies, each with little and with much"
    for name, value in (("execute", 8), ("num_steps", 1), ("play_length", 30), ("settings", {"steps": 9})):
        other = cells(name, {"20": 5}, **{name: value})
        assert sorted(a.successes for a in judged([*little, *other])) == [5, 5, 7, 7]


def test_a_calibration_is_not_judged_by_its_own_bodies_and_an_attempt_counts_once(tmp_path: Path):
    other, own = (write(tmp_path / f"{seed}.json", adapt_result(seed=seed)) for seed in (0, 7))
    again = write(tmp_path / "again.json", adapt_result(seed=0))
    cells = read_cells([other, own, again])
    calibration = make_calibration("0123", source={"settings": {"seed": 7}})
    once = judged(cells[:1])
    assert once and len(judged(cells)) == 2 * len(once), "those of two seeds, each once"
    assert len(judged(cells, calibration)) == len(once)
