"""The matrix around the measuring (which is replaced by known numbers), and one cell measured for real."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from selfalign.bench import adapt, matrix
from selfalign.bench import cell as cells
from selfalign.bench.cell import BodyJob, bodies_of, measure, measure_body
from selfalign.bench.matrix import MatrixConfig, run, run_plan
from selfalign.bench.plan import Cell, Plan, with_oracle
from selfalign.settings import AlignSettings

# Play as short as in these tests may leave the gripper alone.
pytestmark = pytest.mark.filterwarnings("ignore:near-constant dimensions")

REACHED = {1: 0.2, 3: 0.6, 10: 0.9, 30: 0.95}
"""Success that the made-up method has after so much play; source bodies always succeed."""


def made_up(job: BodyJob) -> dict:
    def result(amount: int) -> dict:
        value = 1.0 if job.cell.region == "source" else REACHED[amount]
        success = {"value": value, "successes": round(20 * value), "episodes": 20}
        costs = {"robot_seconds": 2.5 * amount, "fit_seconds": 1.0, "peak_megabytes": 100.0 + job.index}
        return {"success": success, **costs, "bytes_stored": 1000}

    results = {str(amount): result(amount) for amount in job.cell.amounts}
    return {"index": job.index, "name": job.body.name, "body": {}, "results": results, "seconds": {"all": 2.0}}


class Measured(list):
    """Stands in for the measuring; keeps what it was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, broken=lambda job: None):
        def instead(job: BodyJob) -> dict:
            self.append((job.cell.label, job.cell.region, job.index))
            broken(job)
            return made_up(job)

        monkeypatch.setattr(cells, "measure_body", instead)


@pytest.fixture(autouse=True)
def no_robot_is_prepared(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(matrix, "prepare", lambda robot: None)


@pytest.fixture
def curve(checkpoint: Path) -> Cell:
    return Cell(str(checkpoint), scenario="action", bodies=3, play=(30, 1, 3, 10), label="curve")


def test_a_curve_and_its_speed(curve: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    done = Measured(monkeypatch)
    result = run_plan(Plan("p", tuple(with_oracle(curve))), tmp_path, workers=1, show=False)
    assert len(done) == 6 and result["failed"] == 0
    assert json.loads((tmp_path / "matrix.json").read_text()) == result
    assert Plan.open(tmp_path / "plan.json").cells[0] == curve
    summary = result["cells"][0]["summary"]
    assert {int(amount): of["success"]["value"] for amount, of in summary.items()} == pytest.approx(REACHED)
    assert summary["3"]["success"]["pooled"]["successes"] == 36 and summary["3"]["peak_megabytes"] == 102.0
    (speed,) = result["speed"]
    assert speed["trajectories"]["value"] == 10 and speed["robot_seconds"] == 25.0 and speed["oracle"] == 1.0
    assert result["cells"][0]["split"] == "test" and {"command", "commit"} <= result["cells"][0]["provenance"].keys()


def test_what_is_finished_is_kept_and_shared(curve: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def stop(job: BodyJob) -> None:
        if len(done) == 3:
            raise KeyboardInterrupt

    done = Measured(monkeypatch, stop)
    plan = Plan("p", (curve,))
    with pytest.raises(KeyboardInterrupt):
        run_plan(plan, tmp_path, workers=1, show=False)
    assert len(list(tmp_path.glob("bodies/*/*.json"))) == 2
    later = Measured(monkeypatch)
    first = run_plan(plan, tmp_path, workers=1, show=False)
    assert later == [("curve", "heldout", 2)]
    none = Measured(monkeypatch)
    twins = Plan("q", (replace(curve, label="a"), replace(curve, label="b")))
    again = run_plan(twins, tmp_path, workers=1, show=False)
    assert none == []
    assert [entry["label"] for entry in again["cells"]] == ["a", "b"]
    assert all(entry["summary"] == first["cells"][0]["summary"] for entry in again["cells"])
    other = Measured(monkeypatch)
    run_plan(Plan("r", (replace(curve, episodes=21),)), tmp_path, workers=1, show=False)
    assert len(other) == 3


def test_how_a_checkpoint_is_aligned_is_part_of_a_cell(curve: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Measured(monkeypatch)
    plan, before = Plan("p", (curve,)), matrix.policy_of(curve.checkpoint)
    first = run_plan(plan, tmp_path, workers=1, show=False)
    changed = replace(before, settings=AlignSettings(steps=3, batch_size=4))
    monkeypatch.setattr(matrix, "policy_of", lambda path: changed)
    assert run_plan(plan, tmp_path, workers=1, show=False)["cells"][0]["digest"] != first["cells"][0]["digest"]


def test_a_cell_that_fails_stops_no_other(curve: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(job: BodyJob) -> None:
        if job.cell.label == "broken" and job.index == 1:
            raise ValueError("no such thing")

    bad = replace(curve, label="broken", episodes=5)
    absent = replace(curve, checkpoint=str(tmp_path / "none"), label="absent")
    plan = Plan("p", (bad, replace(bad, label="broken too"), absent, curve))
    done = Measured(monkeypatch, broken)
    result = run_plan(plan, tmp_path / "out", workers=1, show=False)
    assert result["failed"] == 3 and len(done) == 6
    errors = [entry.get("error") for entry in result["cells"]]
    assert errors[0] == errors[1] == "body 1: ValueError: no such thing" and "no checkpoint" in errors[2]
    assert "broken(job)" in result["cells"][0]["traceback"] and errors[3] is None
    again = Measured(monkeypatch)
    assert run_plan(plan, tmp_path / "out", workers=1, show=False)["failed"] == 1
    assert again == [("broken", "heldout", 1)]


def test_a_plan_by_name(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setitem(REACHED, 2, 0.1)
    monkeypatch.setitem(REACHED, 4, 0.9)
    Measured(monkeypatch)
    monkeypatch.setenv("COLUMNS", "80")
    run(MatrixConfig("smoke", tmp_path, str(checkpoint), workers=1))
    told = capsys.readouterr().out
    assert "Plan smoke" in told and "4 play" in told and "90 % [90, 90]" in told
    assert "4 [4, 4] trajectories of play (10 s) to 90 % of the oracle's 100 %" in " ".join(told.split())


# ---- for real ------------------------------------------------------------------------------------------------------


REAL = Cell("", scenario="action", seed=4, bodies=1, episodes=1, play=(2,), play_length=11, execute=8, num_steps=1)


@pytest.fixture(scope="module")
def adapted(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What `bench adapt` says of the same body."""
    config = adapt.AdaptConfig(
        checkpoint, "action", 1, seed=4, play=2, episodes=1, json=tmp_path_factory.mktemp("adapt") / "out.json",
        steps=(1,), play_length=11, demonstrations=0, execute=8, num_steps=1, workers=1,
    )  # fmt: skip
    return adapt.run(config, show=False)["bodies"][0]


@pytest.mark.parametrize("method, condition", [("selfalign", "aligned"), ("frozen", "before")])
def test_a_cell_meets_what_bench_adapt_meets(checkpoint: Path, adapted: dict, method: str, condition: str):
    cell = replace(REAL, checkpoint=str(checkpoint), method=method)
    row = measure_body(BodyJob("x", cell, 0, bodies_of(cell)[0]))
    (result,) = row["results"].values()
    assert row["body"] == adapted["body"]
    same = ("successes", "episodes", "mean_progress")
    assert [result["success"][name] for name in same] == [adapted["success"][condition][name] for name in same]
    assert result["robot_seconds"] == adapted["play"]["robot_seconds"] == 1.1
    assert result["peak_megabytes"] > 50
    if method == "selfalign":
        assert {k: result["verdict"][k] for k in ("before", "after", "null")} == {
            k: adapted["verdict"][k] for k in ("before", "after", "null")
        }
        assert result["bytes_stored"] == pytest.approx(adapted["context_megabytes"] * 1e6, abs=60)
    else:
        assert result["bytes_stored"] == 0


def test_methods_of_the_baselines_are_plugged_in(checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def fit(name, policy, play, demonstrations, *, seed, config):
        asked.append((name, play, [episode.task.split()[0] for episode in demonstrations], config))
        context = policy.model.prior().with_info(norm_stats=demonstrations_stats(demonstrations))
        return SimpleNamespace(policy=policy, context=context, bytes_stored=77, seconds=0.5)

    def demonstrations_stats(episodes):
        from selfalign.data.play import Play

        return Play.from_episodes(episodes).stats().to_dict()

    monkeypatch.setitem(sys.modules, "selfalign.baselines", SimpleNamespace(fit=fit))
    few = {"method": "lora", "settings": {"rank": 2}, "play": (), "demonstrations": (2, 1), "task": "lift"}
    cell = replace(REAL, checkpoint=str(checkpoint), **few)
    row = measure_body(BodyJob("x", cell, 0, bodies_of(cell)[0]))
    assert asked == [("lora", None, ["lift"], {"rank": 2}), ("lora", None, ["lift", "lift"], {"rank": 2})]
    assert row["results"]["2"]["bytes_stored"] == 77 and row["results"]["1"]["fit_seconds"] == 0.5


def test_what_goes_wrong_in_a_worker_comes_back(checkpoint: Path):
    cell = replace(REAL, checkpoint=str(checkpoint), method="selfalign", settings={"stepps": 3})
    row = measure(BodyJob("x", cell, 0, bodies_of(cell)[0]))
    assert row["error"].startswith("ValueError: selfalign takes the settings of AlignConfig")
    assert "measure_body" in row["traceback"]
