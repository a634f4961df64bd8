"""A calibration is read as it was written, answers between its groups, and travels with its checkpoint only."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import selfalign as sa
from align.factory import make_play, small_policy
from calibrations import make_calibration
from selfalign import checkpoint
from selfalign.align.verdict import Verdict
from selfalign.calibration import Ample, Calibration, Expected
from selfalign.checkpoint import save_checkpoint, set_calibration
from selfalign.policy import Policy
from selfalign.settings import AlignSettings


@pytest.fixture
def policy() -> Policy:
    return small_policy()


def test_between_groups_the_curve_is_straight():
    calibration = make_calibration()
    found = calibration.expect(1.25)
    share = (1.25 - 1.0) / (1.5 - 1.0)
    for name in ("success", "low", "high"):
        left, right = getattr(calibration, name)[:2]
        assert getattr(found, name) == pytest.approx((1 - share) * left + share * right)
    assert calibration.expect(0.2) == Expected(0.95, 0.9, 0.98, "reach"), "beyond the ends it is level"
    assert calibration.expect(9.0) == Expected(0.0, 0.0, 0.1, "reach")


def test_action_loss_is_read_from_the_groups_that_have_one():
    calibration = make_calibration(action_loss=(0.2, None, 0.6))
    assert calibration.expect_action_loss(2.0) == pytest.approx(0.4)  # halfway from 1 to 3
    assert make_calibration(action_loss=(None, None, None)).expect_action_loss(2.0) is None


@pytest.mark.parametrize(("loss", "objects"), [(0.7, True), (0.73, False), (1.0, False), (1.75, False), (1.77, True)])
def test_a_loss_that_was_never_seen_is_an_objection(loss: float, objects: bool):
    calibration = make_calibration(seen=(0.8, 1.6))
    assert bool(calibration.objection(loss)) == objects
    if objects:
        assert "is outside what this checkpoint has seen, 0.8 to 1.6 on 6 bodies" in calibration.objection(loss)


def test_success_that_the_prior_has_too_is_an_objection():
    calibration = make_calibration(seen=(0.5, 4.0), before=Expected(0.3, 0.2, 0.4))
    assert calibration.objection(1.0) == ""
    assert "no better than 0.30 before aligning" in calibration.objection(3.0)


@pytest.mark.parametrize(
    ("loss", "frames", "doubts"),
    [(1.31, 1000, False), (1.33, 1000, True), (1.33, 5000, True), (1.33, 999, False), (0.1, 1000, False)],
)
def test_a_loss_that_much_play_never_left_is_doubted(loss: float, frames: int, doubts: bool):
    calibration = make_calibration(ample=Ample(frames=1000, loss=1.2))  # and a tenth more
    assert bool(calibration.doubt(loss, frames)) == doubts
    if doubts:
        assert "none of 6 bodies that then acted better ended above 1.2" in calibration.doubt(loss, frames)
    assert make_calibration().doubt(loss, frames) == "", "not measured"


@pytest.mark.parametrize(
    "change",
    [
        {"loss": (1.0,)},
        {"loss": (2.0, 1.0, 3.0)},
        {"low": (0.96, 0.3, 0.0)},
        {"seen": (float("nan"), 1.0)},
        {"ample": Ample(1000, float("nan"))},  # it would doubt everything
        {"ample": Ample(0, 1.0)},
    ],
)
def test_impossible_curves_are_refused(change):
    with pytest.raises(ValueError):
        make_calibration(**change)


def test_round_trip_as_json():
    calibration = make_calibration(action_loss=(0.2, None, 0.6))
    for ample in (None, Ample(1000, 1.25)):
        told = replace(calibration, ample=ample)
        assert Calibration.from_dict(json.loads(json.dumps(told.to_dict()))) == told
    older = {name: value for name, value in calibration.to_dict().items() if name != "ample"}
    assert Calibration.from_dict(older) == calibration
    with pytest.raises(ValueError, match="no calibration of format"):
        Calibration.from_dict({**calibration.to_dict(), "format": "another"})


# ---- in a checkpoint -----------------------------------------------------------------------------------------------


def test_a_checkpoint_carries_it_and_may_do_without(policy: Policy, tmp_path: Path):
    directory = save_checkpoint(policy, tmp_path / "checkpoint")
    assert sa.load(directory).calibration is None
    plain = (directory / "settings.json").read_bytes()
    first, second = (make_calibration(policy.fingerprint(), bodies=n) for n in (6, 8))
    for calibration in (first, second):
        set_calibration(directory, calibration)
        assert sa.load(directory).calibration == calibration
    copied = save_checkpoint(sa.load(directory), tmp_path / "copy")
    assert sa.load(copied).calibration == second
    save_checkpoint(replace(sa.load(directory), calibration=None), directory)
    assert not (directory / "calibration.json").exists()
    assert (directory / "settings.json").read_bytes() == plain


def test_damage_and_absence_are_found(policy: Policy, tmp_path: Path):
    directory = save_checkpoint(policy, tmp_path / "checkpoint")
    set_calibration(directory, make_calibration(policy.fingerprint()))
    path = directory / "calibration.json"
    text = path.read_text()
    path.write_text(text.replace("0.95", "0.99"))
    with pytest.raises(ValueError, match=r"calibration\.json differs from what was written"):
        sa.load(directory)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"calibration\.json is missing"):
        sa.load(directory)


def test_another_models_calibration_is_refused(policy: Policy, tmp_path: Path):
    directory = save_checkpoint(policy, tmp_path / "checkpoint")
    with pytest.raises(ValueError, match="of model another"):
        set_calibration(directory, make_calibration("another"))


@pytest.mark.parametrize("crash", [1, 2, 3])
def test_an_interrupted_change_leaves_a_checkpoint_that_loads(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash: int
):
    directory = save_checkpoint(policy, tmp_path / "checkpoint")
    old, new = (make_calibration(policy.fingerprint(), bodies=n) for n in (6, 8))
    set_calibration(directory, old)
    write, count = checkpoint.write_json, iter(range(1, 9))

    def failing(path, data):
        if next(count) == crash:
            raise OSError(28, os.strerror(28))
        write(path, data)

    monkeypatch.setattr(checkpoint, "write_json", failing)
    with pytest.raises(OSError):
        set_calibration(directory, new)
    monkeypatch.undo()
    assert sa.load(directory).calibration == (old if crash == 1 else None)
    set_calibration(directory, new)
    assert sa.load(directory).calibration == new


# ---- in a verdict --------------------------------------------------------------------------------------------------


def aligned(policy: Policy, **config):
    config = sa.AlignConfig(eval_samples=8, eval_times=2, steps=6, eval_every=3, **config)
    return sa.align(policy, make_play(), config=config, progress=False)


def test_align_goes_by_the_calibration(policy: Policy, tmp_path: Path):
    plain = aligned(policy)
    assert plain.verdict.accepted and plain.verdict.expected is None
    after = plain.verdict.after
    curve = {"loss": (0.5 * after, after, 2 * after), "seen": (0.9 * after, 1.2 * after)}
    told = aligned(replace(policy, calibration=make_calibration(policy.fingerprint(), **curve)))
    assert told.verdict == replace(plain.verdict, expected=Expected(0.5, 0.3, 0.7, "reach"))
    assert str(told.verdict) == f"{plain.verdict}; expected success 0.30-0.70 (reach)"
    path = told.context.save(tmp_path / "context.safetensors")
    stored = policy.load_context(path).info.verdict
    assert stored is not None and Verdict.from_dict(stored) == told.verdict

    strange = replace(policy, calibration=make_calibration(seen=(0.1 * after, 0.2 * after)))
    rejected = aligned(strange)
    assert not rejected.verdict.accepted and "expected" not in str(rejected.verdict)
    assert "is outside what this checkpoint has seen" in str(rejected.verdict)
    assert rejected.context.distance(policy.model.prior()) == 0
    assert aligned(strange, calibrated=False).verdict == plain.verdict


def test_align_counts_all_play_before_it_doubts(policy: Policy):
    after = aligned(policy).verdict.after
    curve = {"loss": (0.5 * after, after, 2 * after), "seen": (0.1 * after, 1.2 * after)}
    for frames, doubts in ((6 * 16, True), (6 * 16 + 1, False)):
        told = make_calibration(policy.fingerprint(), **curve, ample=Ample(frames, 0.5 * after))
        assert bool(aligned(replace(policy, calibration=told)).verdict.doubt) == doubts


def test_losses_with_other_weights_are_not_looked_up(policy: Policy):
    calibrated = replace(policy, calibration=make_calibration(seen=(0.0, 1e-3)))
    weights = replace(AlignSettings().weights, dynamics=0.5)
    assert "outside" not in str(aligned(calibrated, weights=weights).verdict)


def test_interpolation_is_monotone():
    calibration = make_calibration()
    found = [calibration.expect(x).success for x in np.linspace(0, 5, 101)]
    assert found == sorted(found, reverse=True)
