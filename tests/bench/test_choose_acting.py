"""Which speed and temperature are chosen, by whom they are read, and a cell that acts with its own."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench.attempting import outcome
from calibrations import make_calibration
from selfalign.acting import Acting
from selfalign.bench import choose_acting, matrix
from selfalign.bench.cell import BodyJob, bodies_of, measure_body
from selfalign.bench.choose_acting import ActingConfig, best, run, success
from selfalign.bench.plan import HEADLINE, SPEEDS, TEMPERATURES, Cell, Plan
from selfalign.bench.stats import wilson
from selfalign.bench.subject import identity_of
from selfalign.bench.workshop import Workshop
from selfalign.checkpoint import load, save_checkpoint
from selfalign.sim.seeds import VALIDATION_FROM
from selfalign.sim.tasks import KINDS

pytestmark = pytest.mark.filterwarnings("ignore:near-constant dimensions")
PAIRS = [(speed, temperature) for speed in SPEEDS for temperature in TEMPERATURES]
BEST = (1.4, 0.7)


def entry(speed: float, temperature: float, task: str, successes: int) -> dict:
    rows = [{"name": name, "results": {"20": {"success": outcome(successes)}}} for name in "ab"]
    return {"settings": {"speed": speed, "temperature": temperature, "task": task}, "bodies": rows}


def result_of(plan: Plan) -> dict:
    """Reaching wants to be slow, pushing fast, and one pair does best in all."""

    def successes(cell: Cell) -> int:
        if (cell.speed, cell.temperature) == BEST:
            return 8
        return {"reach": 10 if cell.speed == 1.0 else 5, "push": round(3 * cell.speed)}.get(cell.task, 4)

    cells = [entry(cell.speed, cell.temperature, cell.task, successes(cell)) for cell in plan.cells]
    return {"cells": cells, "failed": 0}


def test_the_plan_asks_every_pair_of_every_scenario_and_task():
    plan = Plan.open("acting", "c", 1_000_000)
    asked = {(cell.speed, cell.temperature, cell.scenario, cell.task) for cell in plan.cells}
    assert asked == {(*pair, scenario, task) for pair in PAIRS for scenario in HEADLINE for task in KINDS}
    assert len(plan.cells) == len(asked) and len({cell.label for cell in plan.cells}) == len(PAIRS)
    assert {cell.seed for cell in plan.cells} == {1_000_000}


def test_the_best_pair_is_that_of_the_most_success_over_all():
    result = result_of(Plan.open("acting", "c", 1_000_000))
    assert best(result) == Acting(*BEST)
    reaching = success(result, "reach")
    assert reaching[Acting(1.0, 0.5)].value == 1.0 and reaching[Acting(*BEST)].value == 0.8
    (whole,) = (of for acting, of in success(result).items() if acting == Acting(1.0, 0.5))
    assert whole.value == pytest.approx((1.0 + 0.3 + 0.4) / 3)
    # Two bodies that are alike: the interval is Wilson's of all their episodes, 2 x 12 cells of 10 with 17 of 30.
    found = wilson(136, 240)
    assert (whole.low, whole.high) == pytest.approx((found.low, found.high))


def test_it_is_written_into_the_checkpoint(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    policy = load(checkpoint)
    own = save_checkpoint(replace(policy, calibration=make_calibration(policy.fingerprint())), tmp_path / "own")
    plans: list[Plan] = []

    def instead(plan: Plan, out: Path, **options) -> dict:
        plans.append(plan)
        return result_of(plan)

    monkeypatch.setattr(choose_acting, "run_plan", instead)
    assert run(ActingConfig(own, tmp_path / "out", bodies=3, seed=VALIDATION_FROM + 2)) == Acting(*BEST)
    found = load(own)
    assert found.acting == Acting(*BEST) and found.calibration is None
    told = {(cell.bodies, cell.checkpoint, cell.seed) for cell in plans[0].cells}
    assert told == {(3, str(own), VALIDATION_FROM + 2)}
    assert "acts at speed 1.4, temperature 0.7 now" in " ".join(capsys.readouterr().out.split())


def test_a_cell_that_fails_chooses_nothing(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(choose_acting, "run_plan", lambda plan, out, **_: {**result_of(plan), "failed": 2})
    with pytest.raises(RuntimeError, match=r"2 cells failed: .*matrix.json says why"):
        run(ActingConfig(checkpoint, tmp_path), show=False)
    assert load(checkpoint).acting == Acting()


@pytest.mark.parametrize("changes", [{"bodies": 0}, {"seed": 3}, {"workers": 0}])
def test_what_is_out_of_range_is_refused(changes):
    with pytest.raises(ValueError, match="bench acting: refused"):
        ActingConfig(**changes)


# ---- cells ---------------------------------------------------------------------------------------------------------


def test_a_cell_says_how_it_acts_only_where_it_does():
    cell = Cell("c")
    assert not {"speed", "temperature"} & cell.measured().keys()
    assert replace(cell, speed=1.5).measured()["speed"] == 1.5
    assert replace(cell, speed=1.5).acting(Acting(2.0, 0.3)) == Acting(1.5, 0.3)
    assert Cell.from_dict({"checkpoint": "c", "temperature": 0.5}).acting(Acting()) == Acting(1.0, 0.5)
    with pytest.raises(ValueError, match="the speed of acting must be positive"):
        Cell("c", speed=-1.0)


def test_numbers_of_other_acting_are_other_numbers(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    policy = load(checkpoint)
    none = {
        "fingerprint": policy.fingerprint(),
        "align": policy.settings.to_dict(),
        "calibration": None,
        "acting": None,
    }
    assert identity_of(policy) == json.loads(json.dumps(none))
    assert identity_of(policy, Acting(2.0)) == {**identity_of(policy), "acting": {"speed": 2.0, "temperature": 1.0}}
    own = save_checkpoint(replace(policy, acting=Acting(2.0)), tmp_path)
    cell = Cell(str(checkpoint), bodies=1)
    states = [
        matrix._open(one, tmp_path, True)
        for one in (cell, replace(cell, checkpoint=str(own)), replace(cell, speed=2.0), replace(cell, speed=1.0))
    ]
    digests = [state.digest for state in states]
    assert len(set(digests)) == 4 and not any(state.error for state in states)
    assert [(state.identity["acting"] or {}).get("speed") for state in states] == [None, 2.0, 2.0, None]


def test_what_to_choose_by_does_not_depend_on_the_calibration_that_goes(checkpoint: Path, tmp_path: Path):
    policy = load(checkpoint)
    own = save_checkpoint(replace(policy, calibration=make_calibration(policy.fingerprint())), tmp_path / "own")
    plain, with_it, without = (
        matrix._open(Cell(str(folder), bodies=1), tmp_path, calibrated)
        for folder, calibrated in ((checkpoint, True), (own, True), (own, False))
    )
    assert plain.digest == without.digest != with_it.digest
    assert not without.jobs[0].calibrated and with_it.jobs[0].calibrated


def test_success_is_expected_of_the_checkpoints_own_acting_alone(checkpoint: Path):
    policy = load(checkpoint)
    policy = replace(policy, calibration=make_calibration(policy.fingerprint(), seen=(0.0, 100.0)))
    cell = Cell(str(checkpoint), seed=4, bodies=1, episodes=1, play=(2,), play_length=11, settings={"steps": 1})
    body = bodies_of(cell)[0]
    shop = Workshop(policy, body, BodyJob("x", cell, 0, body).seed)
    rows = [measure_body(BodyJob("x", one, 0, body), shop) for one in (cell, replace(cell, speed=2.0))]
    own, other = (row["results"]["2"]["verdict"] for row in rows)
    assert own["expected"] is not None and other == {**own, "expected": None}


def test_bodies_are_fitted_once_and_act_as_their_cell_says(checkpoint: Path):
    policy = load(checkpoint)
    cell = Cell(str(checkpoint), seed=4, bodies=1, episodes=2, play=(2,), play_length=11, settings={"steps": 1})
    body = bodies_of(cell)[0]
    assert body.action_space.is_delta

    def progress(cell: Cell, workshop: Workshop) -> float:
        row = measure_body(BodyJob("x", cell, 0, body), workshop)
        return row["results"]["2"]["success"]["mean_progress"]

    job = BodyJob("x", cell, 0, body)
    own, quick = Workshop(policy, body, job.seed), Workshop(replace(policy, acting=Acting(3.0)), body, job.seed)
    fast = progress(replace(cell, speed=3.0), own)
    assert len(own._made) == 1 and fast != progress(cell, own) and len(own._made) == 1
    assert fast == progress(cell, quick), "a checkpoint's own speed is as a cell's"
