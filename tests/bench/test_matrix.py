"""The matrix around the measuring, which is replaced by known numbers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from calibrations import make_calibration
from selfalign.baselines import choices
from selfalign.bench import cell as cells
from selfalign.bench import matrix, methods
from selfalign.bench.cell import BodyJob, bodies_of
from selfalign.bench.matrix import MatrixConfig, run, run_plan
from selfalign.bench.plan import Cell, Plan, with_oracle
from selfalign.bench.workshop import Workshop
from selfalign.checkpoint import load
from selfalign.cli import main
from selfalign.model.weights import read_json
from selfalign.settings import AlignSettings
from selfalign.sim.seeds import VALIDATION_FROM

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
        def instead(job: BodyJob, at: Workshop) -> dict:
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
    assert len(done) == 6 and result["failed"] == 0 and result["provenance"]["seconds"] is not None
    assert json.loads((tmp_path / "matrix.json").read_text()) == result
    assert Plan.open(tmp_path / "plan.json").cells[0] == curve
    summary = result["cells"][0]["summary"]
    assert {int(amount): of["success"]["value"] for amount, of in summary.items()} == pytest.approx(REACHED)
    assert summary["3"]["success"]["pooled"]["successes"] == 36 and summary["3"]["peak_megabytes"] == 102.0
    (speed,) = result["speed"]
    assert speed["trajectories"]["value"] == 10 and speed["robot_seconds"] == 25.0 and speed["oracle"] == 1.0
    assert result["cells"][0]["checkpoint"] == Path(curve.checkpoint).name, "not where it lies on this machine"
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
    assert first["provenance"]["seconds"] is again["provenance"]["seconds"] is None, "of a part, they would mislead"
    other = Measured(monkeypatch)
    run_plan(Plan("r", (replace(curve, episodes=21),)), tmp_path, workers=1, show=False)
    assert len(other) == 3


def test_a_cell_of_more_bodies_begins_with_those_of_fewer(curve: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = Measured(monkeypatch)
    both = (replace(curve, bodies=2), curve)
    few, three = run_plan(Plan("p", both), tmp_path, workers=1, show=False)["cells"]
    assert len(first) == 3 and few["digest"] != three["digest"]
    assert few["bodies"] == three["bodies"][:2] and len(three["bodies"]) == 3
    more = Measured(monkeypatch)
    five = run_plan(Plan("q", (replace(curve, bodies=5),)), tmp_path, workers=1, show=False)["cells"][0]
    assert [index for *_, index in more] == [3, 4] and five["bodies"][:3] == three["bodies"]


def test_how_a_checkpoint_is_aligned_is_part_of_a_cell(curve: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Measured(monkeypatch)
    plan, before = Plan("p", (curve,)), matrix.policy_of(curve.checkpoint)
    first = run_plan(plan, tmp_path, workers=1, show=False)
    found = {first["cells"][0]["digest"]}
    settings, strict = AlignSettings(steps=3, batch_size=4), make_calibration(seen=(0.1, 0.2))
    for changes in ({"settings": settings}, {"calibration": make_calibration()}, {"calibration": strict}):
        monkeypatch.setattr(matrix, "policy_of", lambda path, changes=changes: replace(before, **changes))
        found.add(run_plan(plan, tmp_path, workers=1, show=False)["cells"][0]["digest"])
    assert len(found) == 4


def test_a_checkpoint_that_changes_meanwhile_is_not_measured(
    curve: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    done, began = Measured(monkeypatch), replace(matrix.policy_of(curve.checkpoint), settings=AlignSettings(steps=3))
    monkeypatch.setattr(matrix, "policy_of", lambda path: began)  # workers find the one on disk
    (entry,) = run_plan(Plan("p", (curve,)), tmp_path, workers=1, show=False)["cells"]
    assert "the checkpoint has changed since this run began (align)" in entry["error"] and done == []
    assert not list(tmp_path.glob("bodies/*/*.json"))


def test_a_checkpoint_that_goes_meanwhile_is_an_error_of_its_cells(
    curve: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    Measured(monkeypatch)
    found = cells.policy_of

    def gone(path: str):
        if path == "gone":
            raise FileNotFoundError("no checkpoint gone")
        return found(path)

    monkeypatch.setattr(matrix, "policy_of", lambda path: found(curve.checkpoint))
    monkeypatch.setattr(cells, "policy_of", gone)
    plan = Plan("p", (replace(curve, checkpoint="gone", episodes=3), curve))
    first, second = run_plan(plan, tmp_path, workers=1, show=False)["cells"]
    assert first["error"].endswith("FileNotFoundError: no checkpoint gone") and "error" not in second


def test_the_command_fails_where_a_cell_does(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    Measured(monkeypatch)
    command = ["bench", "matrix", "--plan", "smoke", "--out", str(tmp_path), "--checkpoint", str(tmp_path / "none")]
    assert main(command) == 2
    told = capsys.readouterr().err
    assert f"3 of 3 cells failed: {tmp_path / 'matrix.json'} says why" in told
    assert read_json(tmp_path / "matrix.json")["failed"] == 3


def test_a_plan_in_a_file_says_itself_what_it_measures(curve: Cell, tmp_path: Path):
    path = Plan("p", (curve,)).save(tmp_path / "plan.json")
    for given in ({"checkpoint": "other"}, {"split": "validation"}, {"seed": 7}):
        (name,) = given
        with pytest.raises(ValueError, match=rf"{name} for the plan '.*plan\.json' \(a file says its own\)"):
            MatrixConfig(str(path), tmp_path, **given)
    with pytest.raises(ValueError, match=r"split='test' and seed=7 \(one of them\)"):
        MatrixConfig("smoke", tmp_path, split="test", seed=7)


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


def test_the_bodies_and_tasks_of_a_plan_by_name(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(REACHED, 20, 0.9)
    done = Measured(monkeypatch)  # other processes would not have it
    config = MatrixConfig("headline", tmp_path, str(checkpoint), seed=77, tasks=("push",), bodies=1, workers=1)
    run(config, show=False)
    told = [entry["settings"] for entry in read_json(tmp_path / "matrix.json")["cells"]]
    assert len(told) == 24 and {(of["seed"], of["task"]) for of in told} == {(77, "push")}
    assert len(done) == 24
    with pytest.raises(ValueError, match="the plan 'smoke' has no cell"):
        run(MatrixConfig("smoke", tmp_path, str(checkpoint), tasks=("lift",)), show=False)


def test_flags_of_a_plan_by_name_reach_its_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def instead(plan: Plan, out: Path, **options) -> dict:
        asked.append((plan, out, options))
        return {"failed": 0, "cells": []}

    monkeypatch.setattr(matrix, "run_plan", instead)
    run(MatrixConfig("smoke", tmp_path, "mine"), show=False)
    told = {"split": "validation", "speed": 1.5, "temperature": 0.0, "cache": tmp_path / "kept", "workers": 3}
    run(MatrixConfig("smoke", tmp_path, "mine", **told), show=False)
    (plain, *_), (plan, out, options) = asked
    assert {(cell.seed, cell.speed, cell.temperature) for cell in plain.cells} == {(0, None, None)}
    assert {(cell.seed, cell.speed, cell.temperature) for cell in plan.cells} == {(VALIDATION_FROM, 1.5, 0.0)}
    assert {cell.checkpoint for cell in plan.cells} == {"mine"} and out == tmp_path
    assert (options["cache"], options["workers"], options["cluster"]) == (tmp_path / "kept", 3, "none")


def test_a_plan_acts_as_it_is_told_where_its_cells_do_not_say():
    own = Cell("tiny", speed=2.0)
    plan = Plan("p", (Cell("tiny"), own)).acting_at(1.0, None)
    assert plan.cells == (Cell("tiny", speed=1.0), own)
    assert plan.acting_at(None, None) == plan
    with pytest.raises(ValueError, match="speed of acting must be positive, got 0"):
        MatrixConfig("smoke", Path("out"), speed=0.0)


def test_a_plan_by_name(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setitem(REACHED, 2, 0.1)
    monkeypatch.setitem(REACHED, 4, 0.9)
    Measured(monkeypatch)
    monkeypatch.setenv("COLUMNS", "80")
    run(MatrixConfig("smoke", tmp_path, str(checkpoint), bodies=3, workers=1))
    assert all(len(entry["bodies"]) == 3 for entry in read_json(tmp_path / "matrix.json")["cells"])
    with pytest.raises(ValueError, match=r"bodies=0 \(at least 1\)"):
        MatrixConfig("smoke", tmp_path, bodies=0)
    told = capsys.readouterr().out
    assert "Plan smoke" in told and "4 play" in told and "90 % [80, 95]" in told
    assert "4 [4, 4] trajectories of play (10 s) to 90 % of the oracle's 100 %" in " ".join(told.split())


def test_a_row_that_cannot_be_kept_stops_no_other(curve: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Measured(monkeypatch)
    write = cells.write_json

    def full(path: Path, data: dict) -> Path:
        if data["index"] == 1:
            raise OSError(28, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(cells, "write_json", full)
    told = run_plan(Plan("p", (curve, replace(curve, bodies=1))), tmp_path, workers=1, show=False)["cells"]
    assert told[0]["error"] == "body 1: OSError: [Errno 28] No space left on device" and "error" not in told[1]


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"method": "selfaling"}, "no method 'selfaling'; there are: frozen, selfalign, pad"),
        ({"method": "lora", "demonstrations": (2,), "play": (), "settings": {"rnk": 3}}, "has no setting 'rnk'"),
        ({"method": "lora"}, "lora learns from demonstrations of the body"),
        ({"method": "pad", "demonstrations": (2,), "play": ()}, "pad learns from play of the body"),
        ({"method": "frozen", "settings": {"steps": 3}}, "FrozenConfig has no setting 'steps'; it has none"),
        ({"method": "random", "settings": {"stepps": 3}}, "AlignConfig has no setting 'stepps'"),
        ({"settings": "steps"}, "the settings of selfalign are an object"),
        ({"settings": {"steps": "ten"}}, "does not take steps='ten'"),
        (
            {"method": "lora", "demonstrations": (2,), "play": (), "settings": {"parts": ["vlmm"]}},
            "LoraConfig: no parts vlmm; there are: vision, vlm",
        ),
        ({"method": "pad", "settings": {"holdout": 7.0}}, "holdout must be less than 1, got 7.0"),
        ({"method": "nearest", "settings": {"path": "nowhere"}}, "reads nowhere, which is not there"),
        ({"method": "nearest", "settings": {"path": 5}}, "TypeError: "),
    ],
)
def test_a_method_that_cannot_run_is_found_before_anything_is_measured(
    curve: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict, told: str
):
    done = Measured(monkeypatch)
    plan = Plan("p", (replace(curve, **changes), replace(curve, bodies=1)))
    entry, other = run_plan(plan, tmp_path, workers=1, show=False)["cells"]
    assert told in entry["error"] and done == [("curve", "heldout", 0)] and "error" not in other


def test_what_was_chosen_for_a_method_is_part_of_a_cell(curve: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Measured(monkeypatch)
    plan, found = Plan("p", (replace(curve, method="pad"),)), []
    for rate in (1e-4, 1e-5, 1e-4):
        monkeypatch.setattr(methods, "chosen", lambda name, rate=rate: {"learning_rate": rate})
        found.append(run_plan(plan, tmp_path, workers=1, show=False)["cells"][0])
    assert found[0]["digest"] == found[2]["digest"] != found[1]["digest"]
    assert found[0]["method"]["learning_rate"] == 1e-4 and found[0]["method"].keys() > {"steps", "head"}


def test_what_a_method_reads_is_part_of_a_cell(curve: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Measured(monkeypatch)
    path = tmp_path / "encoder.safetensors"
    plan = Plan("p", (replace(curve, method="encoder", settings={"path": str(path)}),))
    found = []
    for content in (None, b"first", b"second"):
        if content is not None:
            path.write_bytes(content)
        found.append(run_plan(plan, tmp_path / "out", workers=1, show=False)["cells"][0])
    assert "which is not there; `selfalign bench encoder` writes one" in found[0]["error"]
    assert found[1]["digest"] != found[2]["digest"]


def test_a_cluster_sends_rows_back_and_they_are_kept_here(curve: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    done, seen = Measured(monkeypatch), []

    def elsewhere(cluster, job, groups, workers, *, on_done):
        seen.extend((cluster, group.folder) for group in groups)
        for group in groups:
            on_done(group, job(group))

    monkeypatch.setattr(matrix, "run_on", elsewhere)
    result = run_plan(Plan("p", (curve,)), tmp_path, cluster="ray", show=False)
    assert seen == [("ray", None)] * 3 and len(done) == 3 and result["failed"] == 0
    assert len(list(tmp_path.glob("bodies/*/*.json"))) == 3


def test_groups_are_of_one_body_and_one_checkpoint():
    camera = Cell("a", bodies=2, play=(2,))
    cells_ = [
        camera,
        replace(camera, method="frozen"),
        replace(camera, checkpoint="b"),
        replace(camera, scenario="robot"),
    ]
    jobs = [BodyJob(str(i), cell, k, body) for i, cell in enumerate(cells_) for k, body in enumerate(bodies_of(cell))]
    groups = cells.grouped(jobs, None)
    told = [[(job.cell.checkpoint, job.cell.scenario, job.cell.method, job.index) for job in g.jobs] for g in groups]
    assert told == [
        [("a", "camera", "selfalign", 0), ("a", "camera", "frozen", 0)],
        [("a", "camera", "selfalign", 1), ("a", "camera", "frozen", 1)],
        [("b", "camera", "selfalign", 0)],
        [("b", "camera", "selfalign", 1)],
        [("a", "robot", "selfalign", 0)],
        [("a", "robot", "selfalign", 1)],
    ]


def test_settings_that_were_tuned_for_another_model_are_told(
    curve: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    Measured(monkeypatch)
    entry = {"settings": {"steps": 3}, "fingerprint": "another"}
    monkeypatch.setattr(choices, "_committed", lambda: {"prompt": entry})
    tuned = replace(curve, method="prompt", settings={"steps": 3})
    plan = Plan("p", (curve, tuned, replace(tuned, settings={"steps": 4})))
    result = run_plan(plan, tmp_path / "p", workers=1)
    (note,) = result["notes"]
    assert note.startswith(f"prompt on {curve.checkpoint}: ") and "(another)" in note
    assert "Note: prompt on" in capsys.readouterr().out
    entry["fingerprint"] = load(Path(curve.checkpoint)).fingerprint()
    assert run_plan(plan, tmp_path / "p", workers=1, show=False)["notes"] == []


@pytest.mark.parametrize("label", ["[v2] recipe", "a[/old]"])
def test_labels_are_printed_as_they_are(
    label: str, curve: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    Measured(monkeypatch)
    monkeypatch.setenv("COLUMNS", "200")
    plan = Plan(f"plan {label}", tuple(with_oracle(replace(curve, label=label))))
    run_plan(plan, tmp_path / label, workers=1)
    told = capsys.readouterr().out
    assert f"Plan plan {label}: success" in told and f"{label} oracle" in told, "the table"
    assert f"{label} selfalign, action, reach: 10 [" in told, "adaptation speed"
    assert f"measuring: {label} selfalign" in told, "the bar"
    assert f"Written to {tmp_path / label / 'matrix.json'}" in told.replace("\n", "")


def test_plans_share_a_cache(curve: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    done = Measured(monkeypatch)
    kept = {"cache": tmp_path / "kept", "workers": 1, "show": False}
    run_plan(Plan("p", (curve,)), tmp_path / "p", **kept)
    assert len(done) == 3 and not (tmp_path / "p" / "cells").exists()
    run_plan(Plan("q", tuple(with_oracle(curve))), tmp_path / "q", **kept)
    assert [region for _, region, _ in done] == ["heldout"] * 3 + ["source"] * 3
    assert len(json.loads((tmp_path / "q" / "matrix.json").read_text())["cells"]) == 2
