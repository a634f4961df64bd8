"""The matrix around the measuring (which is replaced by known numbers), and one cell measured for real."""

import json
import os
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest

from calibrations import make_calibration
from selfalign.bench import adapt, matrix, methods, workshop
from selfalign.bench import cell as cells
from selfalign.bench.cell import BodyJob, Group, bodies_of, measure, measure_body
from selfalign.bench.matrix import MatrixConfig, run, run_plan
from selfalign.bench.plan import Cell, Motion, Plan, with_oracle
from selfalign.bench.workshop import Workshop
from selfalign.checkpoint import load
from selfalign.cli import main
from selfalign.model.losses import LossWeights
from selfalign.model.weights import read_json
from selfalign.settings import AlignSettings
from selfalign.sim.bodies import before_change
from selfalign.sim.playing import play_by_axes
from selfalign.sim.record import record_demonstrations, record_play
from selfalign.sim.tasks import KINDS

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
    Measured(monkeypatch)
    run(MatrixConfig("headline", tmp_path, str(checkpoint), seed=77, tasks=("push",), bodies=1), show=False)
    told = [entry["settings"] for entry in read_json(tmp_path / "matrix.json")["cells"]]
    assert len(told) == 24 and {(of["seed"], of["task"]) for of in told} == {(77, "push")}
    with pytest.raises(ValueError, match="the plan 'smoke' has no cell"):
        run(MatrixConfig("smoke", tmp_path, str(checkpoint), tasks=("lift",)), show=False)


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
        ({"settings": {"steps": "ten"}}, "TypeError"),
        (
            {"method": "lora", "demonstrations": (2,), "play": (), "settings": {"parts": ["vlmm"]}},
            "LoraConfig: no parts vlmm; there are: vision, vlm",
        ),
        ({"method": "pad", "settings": {"holdout": 7.0}}, "holdout must be less than 1, got 7.0"),
        ({"method": "nearest", "settings": {"path": "nowhere"}}, "reads nowhere, which is not there"),
    ],
)
def test_a_method_that_cannot_run_is_found_before_anything_is_measured(
    curve: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict, told: str
):
    done = Measured(monkeypatch)
    (entry,) = run_plan(Plan("p", (replace(curve, **changes),)), tmp_path, workers=1, show=False)["cells"]
    assert told in entry["error"] and done == []


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


# ---- for real ------------------------------------------------------------------------------------------------------


ALL = ("ttt", "perception", "dynamics", "inverse")
REAL = Cell("", scenario="action", seed=4, bodies=1, episodes=1, play=(2,), play_length=11, execute=8, num_steps=1)


def measured(cell: Cell) -> dict:
    """The row of the cell's first body, by a workshop that has made nothing yet."""
    job = BodyJob("x", cell, 0, bodies_of(cell)[0])
    return measure_body(job, Workshop(load(cell.checkpoint), job.body, job.seed))


@pytest.fixture(scope="module")
def adapted(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What `bench adapt` says of the same body."""
    config = adapt.AdaptConfig(
        checkpoint, scenario="action", bodies=1, seed=4, play=2, episodes=1, steps=(1,),
        json=tmp_path_factory.mktemp("adapt") / "out.json", play_length=11, demonstrations=0, execute=8, num_steps=1,
        workers=1,
    )  # fmt: skip
    return adapt.run(config, show=False)["bodies"][0]


@pytest.mark.parametrize("method, condition", [("selfalign", "aligned"), ("frozen", "before")])
def test_a_cell_meets_what_bench_adapt_meets(checkpoint: Path, adapted: dict, method: str, condition: str):
    cell = replace(REAL, checkpoint=str(checkpoint), method=method)
    row = measured(cell)
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

    def fit(name, policy, play, demonstrations, *, seed, config, embodiment):
        assert embodiment["name"] and embodiment["action_space"]["kind"], "the body says what its actions are"
        asked.append((name, play, [episode.task.split()[0] for episode in demonstrations], config))
        context = policy.model.prior().with_info(norm_stats=demonstrations_stats(demonstrations))
        history = {"train": [2.0, 1.0], "best_step": 2, "stopped": "all 2 steps taken"}
        told = {"config": {"rank": 2, "steps": 2}, "history": history}
        return SimpleNamespace(policy=policy, context=context, bytes_stored=77, seconds=0.5, **told)

    def demonstrations_stats(episodes):
        from selfalign.data.play import Play

        return Play.from_episodes(episodes).stats().to_dict()

    monkeypatch.setattr(methods, "fit_baseline", fit)
    few = {"method": "lora", "settings": {"rank": 2}, "play": (), "demonstrations": (2, 1), "task": "lift"}
    cell = replace(REAL, checkpoint=str(checkpoint), **few)
    row = measured(cell)
    assert asked == [("lora", None, ["lift"], {"rank": 2}), ("lora", None, ["lift", "lift"], {"rank": 2})]
    assert row["results"]["2"]["bytes_stored"] == 77 and row["results"]["1"]["fit_seconds"] == 0.5
    told = {name: row["results"]["2"][name] for name in ("config", "best_step", "stopped")}
    assert told == {"config": {"rank": 2, "steps": 2}, "best_step": 2, "stopped": "all 2 steps taken"}
    measured(replace(cell, task="reach", shown="lift", demonstrations=(1,)))
    assert asked[2] == ("lora", None, ["lift"], {"rank": 2}), "what it acts on is not what it was shown"


def test_a_model_without_alignment_losses_is_measured_too(checkpoint: Path):
    cell, policy = replace(REAL, checkpoint=str(checkpoint)), load(checkpoint)
    idle = replace(policy, settings=replace(policy.settings, weights=LossWeights(**dict.fromkeys(ALL, 0.0))))
    job = BodyJob("x", cell, 0, bodies_of(cell)[0])
    at = Workshop(idle, job.body, job.seed)
    for method in ("selfalign", "random"):
        context = at.make(replace(cell, method=method), 2).fitted.context
        assert context.distance(policy.model.prior()) == 0
    assert not at.make(cell, 2).fitted.history["verdict"]["accepted"]


def test_bodies_play_as_a_cell_says(checkpoint: Path):
    policy, free = load(checkpoint), replace(REAL, checkpoint=str(checkpoint))
    body, size = bodies_of(free)[0], policy.model.config.image_size
    expected = {
        "free": record_play(body, 2, 11, 4, image_size=size),
        "narrow": record_play(body, 2, 11, 4, image_size=size, extent=0.3),
        "axes": list(play_by_axes(body, 2, 11, 4, image_size=size)),
        "brisk": list(play_by_axes(body, 2, 11, 4, image_size=size, brisk=True)),
        "demonstrations": record_demonstrations(body, 2, 4, image_size=size),
    }
    assert set(expected) == set(get_args(Motion))
    for motion, episodes in expected.items():
        play = Workshop(policy, body, 4).play(replace(free, motion=motion))
        for found, own in zip(play.episodes, episodes, strict=True):
            np.testing.assert_array_equal(found.action, own.action)
    firsts = [episodes[0].action[:11] for episodes in expected.values()]
    assert not any(np.array_equal(a, b) for i, a in enumerate(firsts) for b in firsts[:i])


def test_what_is_stale_was_aligned_to_the_body_before_it_changed(checkpoint: Path):
    cell, policy = replace(REAL, checkpoint=str(checkpoint), method="stale"), load(checkpoint)
    job = BodyJob("x", cell, 0, bodies_of(cell)[0])
    made = Workshop(policy, job.body, job.seed).make(cell, 2).fitted
    before = before_change(job.body, cell.scenario, job.seed)
    aligned = Workshop(policy, before, job.seed).make(replace(cell, method="selfalign"), 2).fitted
    own = Workshop(policy, job.body, job.seed).make(replace(cell, method="selfalign"), 2).fitted
    assert made.context.distance(aligned.context) == 0 < made.context.distance(own.context)
    assert made.context.info.norm_stats == aligned.context.info.norm_stats != own.context.info.norm_stats
    result = measured(cell)["results"]["2"]
    assert result["success"]["episodes"] == 1 and "verdict" not in result, "that was on other play"


def test_what_goes_wrong_in_a_worker_comes_back(checkpoint: Path):
    cell = replace(REAL, checkpoint=str(checkpoint), method="selfalign", settings={"stepps": 3})
    (row,) = measure(Group((BodyJob("x", cell, 0, bodies_of(cell)[0]),)))
    assert row["error"].startswith("ValueError: AlignConfig has no setting 'stepps'")
    assert "measure_body" in row["traceback"]


def test_cells_of_a_body_share_play_and_fits_and_find_what_each_finds_alone(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plain = replace(REAL, checkpoint=str(checkpoint), play=(3, 2))
    together = [replace(plain, method=method, task=task) for method in ("random", "selfalign") for task in KINDS[:2]]
    together.append(replace(plain, method="frozen", play=(2,)))
    alone = [without_costs(measured(cell)) for cell in together]
    plays, fits = (CountedCalls(monkeypatch, name) for name in ("record_play", "fit"))
    jobs = tuple(BodyJob(str(i), cell, 0, bodies_of(cell)[0]) for i, cell in enumerate(together))
    (group,) = cells.grouped(jobs, tmp_path)
    rows = measure(group)
    assert [without_costs(row) for row in rows] == alone
    # One recording; of each amount one alignment, whose size is that of the null; and the frozen policy.
    assert (plays.count, fits.count) == (1, 5)
    assert json.loads(cells.row_path(tmp_path, jobs[0]).read_text()) == rows[0]


class CountedCalls:
    """Counts how often the workshop calls one of its functions."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str):
        self.count, self.real = 0, getattr(workshop, name)
        monkeypatch.setattr(workshop, name, self)

    def __call__(self, *args, **options):
        self.count += 1
        return self.real(*args, **options)


def without_costs(row: dict) -> dict:
    """What must not depend on what was measured before."""
    costs = ("fit_seconds", "peak_megabytes")
    results = {
        amount: {
            **{name: value for name, value in result.items() if name not in costs},
            "success": {name: value for name, value in result["success"].items() if name != "seconds"},
        }
        for amount, result in row["results"].items()
    }
    return {"name": row["name"], "results": results}


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


def test_plans_share_a_cache(curve: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    done = Measured(monkeypatch)
    kept = {"cache": tmp_path / "kept", "workers": 1, "show": False}
    run_plan(Plan("p", (curve,)), tmp_path / "p", **kept)
    assert len(done) == 3 and not (tmp_path / "p" / "cells").exists()
    run_plan(Plan("q", tuple(with_oracle(curve))), tmp_path / "q", **kept)
    assert [region for _, region, _ in done] == ["heldout"] * 3 + ["source"] * 3
    assert len(json.loads((tmp_path / "q" / "matrix.json").read_text())["cells"]) == 2


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'selfalign[cluster]'")
@pytest.mark.skipif(
    bool(os.environ.get("RAY_ADDRESS")), reason="a cluster is named, which need not have this checkpoint"
)
def test_ray_measures_what_one_process_measures(checkpoint: Path, tmp_path: Path):
    cell = replace(REAL, checkpoint=str(checkpoint), bodies=2)
    plan, found = Plan("p", (cell, replace(cell, method="frozen"))), {}
    for cluster in ("none", "ray"):
        result = run_plan(plan, tmp_path / cluster, cluster=cluster, workers=1, show=False)
        assert result["failed"] == 0
        found[cluster] = [[without_costs(row) for row in entry["bodies"]] for entry in result["cells"]]
    assert found["ray"] == found["none"]
