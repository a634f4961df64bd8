import dataclasses
import json
from pathlib import Path

import pytest

from selfalign.baselines import choices
from selfalign.bench.plan import PLANS, Cell, Plan, with_oracle
from selfalign.sim.seeds import split_of


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_by_name_is_a_plan_in_a_file(name, tmp_path: Path):
    plan = Plan.open(name, "somewhere/policy", 1_000_000)
    assert {cell.checkpoint for cell in plan.cells} == {"somewhere/policy"}
    assert {cell.seed for cell in plan.cells} == {1_000_000} and split_of(1_000_000) == "validation"
    assert Plan.open(plan.save(tmp_path / "plan.json")) == plan


def test_the_headline_has_every_scenario_and_task_with_its_oracle():
    cells = Plan.open("headline").cells
    told = {(c.scenario, c.task, c.method, c.region) for c in cells}
    conditions = {(method, region) for method in ("selfalign", "frozen") for region in ("heldout", "source")}
    conditions |= {(control, "heldout") for control in ("random", "stale")}
    assert told == {
        (scenario, task, *condition)
        for scenario in ("camera", "action", "robot", "all")
        for task in ("reach", "push", "lift")
        for condition in conditions
    }


def test_only_what_numbers_depend_on_is_measured():
    cell = Cell("here")
    assert cell.measured() == dataclasses.replace(cell, checkpoint="there", label="other").measured()
    assert cell.measured() != dataclasses.replace(cell, episodes=21).measured()


def test_amounts():
    assert Cell("x", play=(10, 1, 3)).amounts == (1, 3, 10)
    few = Cell("x", method="lora", play=(), demonstrations=(5, 1))
    assert few.amounts == (1, 5)
    assert few.demonstrated == "reach" and "shown" not in few.measured(), "as it was before there was `shown`"
    other = dataclasses.replace(few, task="lift", shown="push")
    assert other.demonstrated == "push" and other.measured()["shown"] == "push"
    assert with_oracle(other)[1].shown is None
    assert with_oracle(Cell("x", play=(1, 30)))[1].play == (30,)


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"scenario": "cameras"}, "scenario='cameras'"),
        ({"task": "fold"}, "task='fold'"),
        ({"bodies": 0}, r"bodies=0 \(at least 1\)"),
        ({"play": (0,)}, "each at least 1"),
        ({"play": ()}, "neither play nor demonstrations"),
        ({"play": (1, 2), "demonstrations": (3,)}, "one of them may vary"),
        ({"shown": "reach"}, "shown='reach' without demonstrations"),
        ({"seed": 1.5}, r"a cell: refused: seed=1\.5 \(a whole number\)"),
        ({"bodies": 2.0}, r"bodies=2\.0 \(a whole number\)"),
        ({"episodes": True}, r"episodes=True \(a whole number\)"),
        ({"play": (2.5,)}, r"play=\(2\.5,\) \(whole numbers\)"),
        ({"demonstrations": 3}, r"demonstrations=3 \(whole numbers\)"),
        ({"speed": "fast"}, r"speed='fast' \(a number\)"),
        ({"checkpoint": 5, "label": {"a": 1}}, r"checkpoint=5 \(text\), label=\{'a': 1\} \(text\)"),
        ({"method": ("selfalign",)}, r"method=\('selfalign',\) \(text\)"),
        ({"scenario": ("camera",)}, r"scenario=\('camera',\) \(camera, action"),
        ({"shown": "fly", "demonstrations": (3,)}, r"shown='fly' \(None, reach, push, lift\)"),
    ],
)
def test_impossible_cells(changes, told):
    with pytest.raises(ValueError, match=told):
        Cell(**{"checkpoint": "x", **changes})


def test_damaged_plans(tmp_path: Path):
    path = tmp_path / "plan.json"
    with pytest.raises(ValueError, match="neither a file nor one of smoke"):
        Plan.open(path)
    cells = {
        "has no cell": [],
        "with a checkpoint": [{"play": [1]}],
        r"\['no'\]": [{"checkpoint": "x", "no": 1}],
        r"seed='1' \(a whole number\)": [{"checkpoint": "x", "seed": "1"}],
    }
    texts = {told: json.dumps({"format": "selfalign-plan-1", "name": "p", "cells": of}) for told, of in cells.items()}
    texts |= {"is not a plan": "{", "its format is 'x'": json.dumps({"format": "x"})}
    for told, text in texts.items():
        path.write_text(text)
        with pytest.raises(ValueError, match=told):
            Plan.open(path)


def test_baselines_have_the_settings_that_were_chosen(monkeypatch: pytest.MonkeyPatch):
    entry = {"pad": {"steps": 30}, "prompt": {"tokens": 4}, "encoder": {}, "finetune": {}, "lora": {"rank": 2}}
    known = {name: {"settings": settings, "trials": 16} for name, settings in entry.items()}
    monkeypatch.setattr(choices, "_committed", lambda: known)
    found = {cell.method: cell.settings for cell in Plan.open("baselines").cells if cell.method in entry}
    assert found == {**entry, "encoder": {"path": "outputs/encoder.safetensors"}}
    few = {cell.method: cell.settings for cell in Plan.open("few-shot").cells if cell.demonstrations}
    assert few == {"finetune": {}, "lora": {"rank": 2}}
    assert all(cell.play == (20,) for cell in Plan.open("few-shot").cells), "as in tuning, play gives the statistics"
    del known["pad"]
    with pytest.raises(ValueError, match="pad 0"):
        Plan.open("baselines")
