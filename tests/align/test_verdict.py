import math
from dataclasses import replace

import pytest

from calibrations import make_calibration
from selfalign.align.verdict import Verdict, judge
from selfalign.calibration import Ample


def test_an_accepted_verdict_reads_as_in_the_manual():
    assert str(judge(0.41, 0.12, 0.40)) == "accept: held-out play loss 0.41 -> 0.12 (null 0.40)"


@pytest.mark.parametrize(
    ("numbers", "accepted", "reason"),
    [
        ((1.0, 0.97, 1.0), True, ""),
        ((1.0, 0.99, 1.0), False, "not 2% below the start"),
        ((1.0, 1.2, 1.5), False, "not 2% below the start"),
        ((1.0, 0.5, 0.5), False, "not 2% below a random update of equal norm"),
        ((1.0, 0.495, 0.5), False, "not 2% below a random update of equal norm"),
        ((1.0, 0.489, 0.5), True, ""),
        ((1.0, math.nan, 1.0), False, "a loss is not finite"),
        ((1.0, 0.5, math.inf), False, "a loss is not finite"),
    ],
)
def test_judgement(numbers, accepted, reason):
    verdict = judge(*numbers)
    assert (verdict.accepted, verdict.reason) == (accepted, reason)
    assert str(verdict).startswith("accept: " if accepted else "reject: ") and reason in str(verdict)


def test_a_problem_rejects_whatever_the_losses():
    assert str(judge(1.0, 0.1, 1.0, problem="it broke", note="at noon")) == (
        "reject: held-out play loss 1.00 -> 0.10 (null 1.00); it broke; at noon"
    )


def test_a_calibration_may_object_and_never_absolves():
    calibration = make_calibration()  # it has seen play losses of 0.8 to 1.6
    assert judge(3.0, 1.2, 3.0, calibration=calibration).accepted
    beyond = judge(5.0, 3.0, 5.0, calibration=calibration)
    assert not beyond.accepted and beyond.reason == calibration.objection(3.0) != ""
    within = judge(1.2, 1.2, 3.0, calibration=calibration)
    assert (within.accepted, within.reason) == (False, "not 2% below the start")
    both = judge(3.0, 3.0, 5.0, calibration=calibration)
    assert (both.accepted, both.reason) == (False, "not 2% below the start")
    assert judge(3.0, 1.2, 3.0, problem="it broke", calibration=calibration).reason == "it broke"


def test_a_doubt_is_told_of_what_is_accepted():
    calibration = make_calibration(ample=Ample(frames=1000, loss=1.0))
    doubted = judge(3.0, 1.2, 3.0, calibration=calibration, play_frames=1000, note="at noon")
    assert doubted.accepted and doubted.doubt == calibration.doubt(1.2, 1000) != ""
    assert str(doubted).endswith(f"; {doubted.expected}; {doubted.doubt}; at noon")
    assert judge(3.0, 1.2, 3.0, calibration=calibration, play_frames=999).doubt == "", "too little play to tell"
    assert judge(3.0, 1.2, 3.0, calibration=calibration).doubt == ""
    rejected = judge(1.2, 1.2, 3.0, calibration=calibration, play_frames=1000)
    assert (rejected.accepted, rejected.doubt) == (False, ""), "there is a reason already"
    assert Verdict.from_dict(doubted.to_dict()) == doubted
    older = {name: value for name, value in doubted.to_dict().items() if name != "doubt"}
    assert Verdict.from_dict(older) == replace(doubted, doubt="")


def test_nothing_is_expected_of_a_loss_that_is_not_finite():
    assert judge(1.0, math.inf, 1.0, calibration=make_calibration()).expected is None


def test_small_losses_keep_their_digits():
    assert str(judge(0.0412, 0.00123, 0.04)) == "accept: held-out play loss 0.041 -> 0.0012 (null 0.04)"


def test_round_trip_as_json_values():
    verdict = judge(0.41, 0.12, 0.40, note="interrupted")
    assert Verdict.from_dict(verdict.to_dict()) == verdict
    broken = judge(0.41, math.inf, 0.40)
    assert broken.to_dict()["after"] is None and math.isnan(Verdict.from_dict(broken.to_dict()).after)
