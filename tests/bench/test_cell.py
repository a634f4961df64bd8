"""A body of a cell, measured for real."""

import json
import os
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest

from selfalign.acting import Acting
from selfalign.bench import adapt, methods, workshop
from selfalign.bench import cell as cells
from selfalign.bench.cell import BodyJob, Group, bodies_of, measure, measure_body
from selfalign.bench.matrix import run_plan
from selfalign.bench.plan import Cell, Motion, Plan
from selfalign.bench.rollout import RolloutConfig
from selfalign.bench.workshop import Workshop
from selfalign.checkpoint import load
from selfalign.model.losses import LossWeights
from selfalign.sim.bodies import before_change
from selfalign.sim.playing import play_by_axes
from selfalign.sim.record import record_demonstrations, record_play
from selfalign.sim.tasks import KINDS

# Play as short as in these tests may leave the gripper alone.
pytestmark = pytest.mark.filterwarnings("ignore:near-constant dimensions")

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
        out=tmp_path_factory.mktemp("adapt") / "out.json", play_length=11, demonstrations=0, execute=8, num_steps=1,
        workers=1,
    )  # fmt: skip
    return adapt.run(config, show=False)["bodies"][0]


def test_a_body_is_asked_what_its_cell_says(checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def instead(actor, body, context, config, *, arena) -> SimpleNamespace:
        asked.append((actor.acting, config))
        return SimpleNamespace(to_dict=dict)

    monkeypatch.setattr(cells, "rollout", instead)
    cell = replace(REAL, checkpoint=str(checkpoint), method="frozen", task="push", episodes=3, execute=5, num_steps=2)
    job = BodyJob("x", cell, 0, bodies_of(cell)[0])
    measure_body(job, Workshop(load(checkpoint), job.body, job.seed))
    assert asked == [(Acting(), RolloutConfig(("push",), 3, job.seed, 5, 2))]
    quick = replace(job, cell=replace(cell, task="lift", speed=2.0, temperature=0.5))
    measure_body(quick, Workshop(load(checkpoint), job.body, job.seed))
    assert asked[1] == (Acting(2.0, 0.5), RolloutConfig(("lift",), 3, job.seed, 5, 2))


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

    monkeypatch.setattr(methods, "fit", fit)
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
    plays, fits = (CountedCalls(monkeypatch, name) for name in ("record_play", "run_method"))
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
