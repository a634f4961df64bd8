import json
from dataclasses import replace
from pathlib import Path

import pytest

from selfalign.bench import adapt
from selfalign.bench.adapt import AdaptConfig, run, summarise
from selfalign.sim.bodies import BodySpec

# Play as short as in these tests may leave the gripper alone.
pytestmark = pytest.mark.filterwarnings("ignore:near-constant dimensions")

SMALL = {
    "scenario": "action",
    "bodies": 2,
    "seed": 4,
    "play": 2,
    "play_length": 11,
    "episodes": 1,
    "steps": (1,),
    "demonstrations": 1,
    "execute": 8,
    "num_steps": 1,
    "workers": 1,
}


@pytest.fixture(scope="module")
def measured(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory):
    config = AdaptConfig(checkpoint, out=tmp_path_factory.mktemp("adapt") / "new" / "out.json", **SMALL)
    return config, run(config, show=False)


def without_times(value):
    """Everything that must repeat: no seconds and no provenance."""
    if isinstance(value, dict):
        left_out = ("seconds", "provenance", "seconds_per_body", "checkpoint")
        return {key: without_times(item) for key, item in value.items() if key not in left_out}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def test_rows_hold_every_condition_of_every_body(measured):
    config, result = measured
    assert json.loads(config.out.read_text()) == result
    held_out, source = result["bodies"][:2], result["bodies"][2:]
    assert [row["role"] for row in result["bodies"]] == ["heldout", "heldout", "source", "source"]
    for row in held_out:
        assert list(row["success"]) == ["before", "after_1", "aligned", "random", "swap"]
        assert row["success"]["before"]["episodes"] == 1
        assert set(row["action_loss"]) == {"before", "aligned"}
        assert row["play"]["frames"] == 22
        assert row["seconds"].keys() == {"play", "align", "evaluate"}
        assert row["context_megabytes"] > 0
    for row in source:
        assert list(row["success"]) == ["oracle"]
    bodies = [BodySpec.from_dict(row["body"]) for row in result["bodies"]]
    assert bodies[0] != bodies[1]
    assert result["settings"]["seed"] == 4 and result["checkpoint"]["path"] == config.checkpoint.name
    assert {"command", "commit", "machine", "finished"} <= result["provenance"].keys()
    assert result["provenance"]["seconds"] > 0


def test_finished_work_is_cleared_away_and_not_repeated(measured, monkeypatch: pytest.MonkeyPatch):
    config, result = measured
    assert [path.name for path in config.out.parent.iterdir()] == ["out.json"]
    monkeypatch.setattr(adapt, "fit_body", None)
    assert run(config, show=False) == result
    with pytest.raises(ValueError, match=r"differs in settings\.seed; write to another file"):
        run(replace(config, seed=config.seed + 1), show=False)
    assert json.loads(config.out.read_text()) == result


def test_it_acts_as_it_is_told(measured, tmp_path: Path):
    config, plain = measured
    quick = run(replace(config, out=tmp_path / "quick.json", speed=3.0), show=False)
    assert plain["acting"] is None and quick["acting"] == {"speed": 3.0, "temperature": 1.0}
    for name in ("verdict", "action_loss"):
        assert [row.get(name) for row in quick["bodies"]] == [row.get(name) for row in plain["bodies"]], (
            "fits are alike"
        )
    progress = [[row["success"]["aligned"]["mean_progress"] for row in of["bodies"][:2]] for of in (plain, quick)]
    assert progress[0] != progress[1]
    with pytest.raises(ValueError, match="the temperature of acting must be 0 or more"):
        AdaptConfig(temperature=-1.0)


def test_an_interrupted_run_goes_on_and_gives_the_same(measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config, result = measured
    config = replace(config, out=tmp_path / "out.json")
    evaluate, done = adapt.evaluate_body, []

    def interrupted(job):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(job.key)
        return evaluate(job)

    monkeypatch.setattr(adapt, "evaluate_body", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(config, show=False)
    assert not config.out.exists()
    later = []
    monkeypatch.setattr(adapt, "evaluate_body", lambda job: (later.append(job.key), evaluate(job)))
    monkeypatch.setattr(adapt, "fit_body", None)  # all fits are kept
    again = run(config, show=False)
    assert len(later) == 2
    assert not set(later) & set(done)
    assert without_times(again) == without_times(result)
    assert again["provenance"]["seconds"] is None, "of its last sitting, they would mislead"


@pytest.mark.slow
def test_workers_change_nothing(measured, tmp_path: Path):
    config, result = measured
    other = run(replace(config, out=tmp_path / "out.json", workers=2), show=False)
    assert without_times(other) == without_times(result)


def test_errors_come_before_the_work(checkpoint: Path, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        run(AdaptConfig(tmp_path / "none"), show=False)
    with pytest.raises(ValueError, match=r"bodies=0 \(at least 1\)"):
        AdaptConfig(checkpoint, bodies=0)
    with pytest.raises(ValueError, match="steps"):
        AdaptConfig(checkpoint, steps=())


def success(value: float) -> dict:
    return {"value": value, "successes": round(20 * value), "episodes": 20}


def row(role: str, before: float = 0.0, aligned: float = 0.0, drop: float = 0.0, gain: float = 0.0) -> dict:
    conditions = {"oracle": success(aligned)} if role == "source" else {}
    if role == "heldout":
        conditions = {"before": success(before), "aligned": success(aligned)}
    return {
        "role": role,
        "success": conditions,
        "verdict": {"accepted": drop > 0, "before": 1.0, "after": 1.0 - drop},
        "action_loss": {"before": 2.0, "aligned": 2.0 - gain},
        "seconds": {"play": 1.0, "align": 2.0, "evaluate": 3.0},
        "context_megabytes": 0.5,
    }


def test_summary_of_known_numbers():
    rows = [
        row("heldout", 0.1, 0.9, drop=0.5, gain=0.3),
        row("heldout", 0.0, 0.8, drop=0.2, gain=0.1),
        row("heldout", 0.2, 1.0, drop=0.4, gain=0.2),
        row("source", aligned=1.0),
        row("source", aligned=0.9),
        row("source", aligned=0.95),
    ]
    summary = summarise(rows, ("before", "after_10", "aligned"))
    assert list(summary["success"]) == ["before", "aligned", "oracle"]  # no body has been measured after 10 steps
    aligned = summary["success"]["aligned"]
    assert aligned["value"] == pytest.approx(0.9)
    assert aligned["worst_body"] == 0.8
    assert aligned["pooled"]["successes"] == 54
    assert aligned["pooled"]["low"] >= aligned["low"] and aligned["pooled"]["high"] <= aligned["high"]
    assert 0.79 <= aligned["low"] < 0.9 < aligned["high"] <= 1.0
    assert summary["aligned_over_oracle"]["value"] == pytest.approx(0.9 / 0.95)
    assert summary["accepted"] == 3
    assert summary["play_loss_drop_vs_action_loss_gain"]["rank_correlation"] == 1.0


def test_summary_without_an_oracle_that_succeeds_has_no_ratio():
    summary = summarise([row("heldout", 0.1, 0.2, drop=0.1), row("source", aligned=0.0)], ("before", "aligned"))
    assert summary["aligned_over_oracle"] is None
    assert summary["play_loss_drop_vs_action_loss_gain"]["rank_correlation"] is None


def test_a_fit_that_was_rejected_says_nothing_of_the_transfer():
    rejected = row("heldout", 0.1, 0.1, drop=-0.5, gain=0.0)  # the body kept the prior
    rows = [row("heldout", 0.1, 0.9, drop=0.5, gain=0.3), rejected, row("source", aligned=1.0)]
    transfer = summarise(rows, ("before", "aligned"))["play_loss_drop_vs_action_loss_gain"]
    assert (transfer["mean_play_loss_drop"], transfer["mean_action_loss_gain"]) == (0.5, 0.3)
    only = [rejected, row("source", aligned=1.0)]
    assert summarise(only, ("before", "aligned"))["play_loss_drop_vs_action_loss_gain"] is None
