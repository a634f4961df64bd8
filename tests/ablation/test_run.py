"""The ablation around its trainings: one tower for all, what is done is kept, what fails stops nothing."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from selfalign.ablation import recipes
from selfalign.ablation import run as ablation
from selfalign.ablation.recipes import RECIPES
from selfalign.ablation.run import AblateConfig, bench_cells, plan_trainings, run
from selfalign.ablation.table import tabulate
from selfalign.configs import changed
from selfalign.data.fake import write_fake
from selfalign.data.snapshots import Snapshots
from selfalign.model.weights import load_model
from selfalign.sim.seeds import split_of

LITTLE = {
    "preset": "pi05_alignment_debug",
    "snapshots": None,
    "steps": 2,
    "bodies": {"slots": 2, "play_per_slot": 2, "demonstrations_per_slot": 2},
    "machine": {"compile": False, "threads": 1},
    "log": {"tensorboard": False},
}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AblateConfig:
    """A debugging preset on made-up recordings, of which nothing is measured."""
    monkeypatch.setenv("SELFALIGN_CACHE", str(tmp_path / "cache"))
    full = recipes.base
    monkeypatch.setattr(ablation, "base", lambda *given: changed(full(*given), LITTLE))
    data = write_fake(tmp_path / "data", rigs=2, episodes=2)
    return AblateConfig(
        tmp_path / "out", ("all", "global-w", "new-narrow"), data=(str(data),), threads=1, measure=False
    )


def test_trainings_share_a_tower_and_are_not_repeated(config: AblateConfig, monkeypatch: pytest.MonkeyPatch):
    seen = []
    train = ablation.pretrain.run
    monkeypatch.setattr(ablation.pretrain, "run", lambda flags: (seen.append(flags.bodies.scheme), train(flags)))
    result = run(config, show=False)
    assert seen == [
        "rehearsal",
        "rehearsal",
        "global",
    ]  # the tower's, then each recipe's: new-narrow trains as all does
    assert len(list(config.out.glob("towers/*/tokens-scene-*.npy"))) == 1
    assert not list(config.out.glob("trainings/*/tokens-*"))
    assert [t["label"] for t in result["trainings"]] == ["all", "global-w", "new-narrow"]
    assert result["trainings"][0]["digest"] == result["trainings"][2]["digest"]
    assert json.loads((config.out / "ablation.json").read_text()) == result
    assert result["trainings"][0]["training"]["recordings"]["data"] == ["data"]
    assert str(config.out.parent) not in (config.out / "ablation.json").read_text(), "no place of this machine"
    seen.clear()
    again = run(config, show=False)
    assert again["trainings"] == result["trainings"] and seen == []
    assert result["provenance"]["seconds"] > 0 and again["provenance"]["seconds"] is None


def test_recipes_take_the_tower_of_a_checkpoint(config: AblateConfig, monkeypatch: pytest.MonkeyPatch):
    run(replace(config, cells=("all",)), show=False)
    (job,) = plan_trainings(replace(config, cells=("all",)))
    policy = job.policy
    seen, train = [], ablation.pretrain.run
    monkeypatch.setattr(ablation.pretrain, "run", lambda flags: (seen.append(flags), train(flags)))
    given = replace(config, cells=("global-w",), out=config.out.parent / "given", tower=policy)
    run(given, show=False)
    assert [(flags.tower, flags.snapshots) for flags in seen] == 2 * [(policy, None)]
    (training,) = plan_trainings(given)
    ours, theirs = load_model(training.policy).vision.state_dict(), load_model(policy).vision.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    # The same recipe on another tower is another training, on the same tower elsewhere the same.
    (elsewhere,) = plan_trainings(replace(given, tower=shutil.copytree(policy, config.out.parent / "copy")))
    (own,) = plan_trainings(replace(given, tower=None))
    assert elsewhere.digest == training.digest != own.digest


def test_other_snapshots_are_another_tower(tmp_path: Path):
    images = np.zeros((2, 8, 8, 3), np.uint8)
    digests = []
    for place, folder in ((0.1, "a"), (0.1, "elsewhere"), (0.2, "a")):
        Snapshots(images, np.full((2, 3, 4), place, np.float32)).save(tmp_path / folder)
        digests.append(ablation.tower_digest(recipes.base("ablation", (), tmp_path / folder), "the data"))
    assert digests[0] == digests[1] != digests[2], "what is in them counts, not where they are"


def test_a_training_that_fails_stops_no_other(config: AblateConfig, monkeypatch: pytest.MonkeyPatch):
    train = ablation.pretrain.run

    def broken(flags):
        if flags.bodies.scheme == "global":
            raise ValueError("it does not learn")
        train(flags)

    monkeypatch.setattr(ablation.pretrain, "run", broken)
    with pytest.raises(RuntimeError, match=r"1 trainings and 0 cells failed: .*ablation\.json says why"):
        run(replace(config, cells=("global-w", "all")), show=False)
    result = json.loads((config.out / "ablation.json").read_text())
    assert result["trainings"][0]["error"] == "ValueError: it does not learn"
    assert "error" not in result["trainings"][1]


def test_what_is_measured(config: AblateConfig):
    jobs = plan_trainings(replace(config, seeds=(0, 1)))
    assert [job.label for job in jobs] == ["all", "all/1", "global-w", "global-w/1", "new-narrow", "new-narrow/1"]
    assert len({job.digest for job in jobs}) == 4
    cells = bench_cells(config, jobs[-2:-1])
    assert {split_of(cell.seed) for cell in cells} == {"validation"}
    told = [(c.scenario, c.method, c.region, c.motion) for c in cells]
    assert told == [
        (scenario, *row)
        for scenario in ("camera", "action")
        for row in (
            ("selfalign", "heldout", "narrow"),
            ("selfalign", "source", "free"),
            ("frozen", "heldout", "narrow"),
        )
    ]
    others = bench_cells(replace(config, scenarios=("robot", "all")), jobs)
    assert {cell.scenario for cell in others} == {"robot", "all"}
    with pytest.raises(ValueError, match="each once"):
        replace(config, scenarios=("robot", "robot"))


def test_a_scale_says_how_much_is_measured_and_a_split_whose_bodies(config: AblateConfig):
    for scale, split in (("ablation", "validation"), ("shipped", "test")):
        own = replace(config, cells=("all",), scale=scale, split=split)
        told, cells = recipes.SCALES[scale], bench_cells(own, plan_trainings(own))
        found = {(cell.bodies, cell.episodes, cell.play, split_of(cell.seed)) for cell in cells}
        assert found == {(told.bodies, told.episodes, told.play, split)}
        assert {cell.scenario for cell in cells} == {*told.scenarios}


def test_what_was_trained_is_measured_and_a_dry_run_does_nothing(
    config: AblateConfig, monkeypatch: pytest.MonkeyPatch, capsys
):
    done = []
    monkeypatch.setattr(ablation.pretrain, "run", lambda flags: done.append("trained"))
    assert run(replace(config, measure=True, dry_run=True)) == {} and done == [] and not config.out.exists()
    assert "global-w: " in capsys.readouterr().out

    def instead(plan, out: Path, **options) -> dict:
        done.append((plan.cells, out))
        return {"cells": [], "failed": 0}

    monkeypatch.setattr(ablation, "run_plan", instead)
    own = replace(config, cells=("all",), measure=True)
    assert run(own, show=False)["matrix"] == {"cells": [], "failed": 0}
    measured = tuple(bench_cells(own, plan_trainings(own)))
    assert done == ["trained", "trained", (measured, own.out / "bench")], "the tower's, the recipe's, the benchmark"


def test_a_recipe_with_a_way_of_its_own_has_its_oracle_too(config: AblateConfig):
    cells = bench_cells(config, plan_trainings(replace(config, cells=("latent-prompt",))))
    told = [(c.method, c.region, c.settings) for c in cells if c.scenario == "camera"]
    own = RECIPES["latent-prompt"].bench["settings"]
    assert told == [("prompt", "heldout", own), ("prompt", "source", own), ("frozen", "heldout", {})]


def test_data_that_are_not_there_and_features_that_are_not_given(config: AblateConfig):
    with pytest.raises(ValueError, match="needs features"):
        run(replace(config, cells=("stored-features",)), show=False)
    with pytest.raises(FileNotFoundError):
        run(replace(config, data=("nowhere",)), show=False)
    with pytest.raises(ValueError, match=r"workers=0 \(at least 1\)"):
        replace(config, workers=0)


def test_without_data_a_dry_run_says_what_each_cell_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = AblateConfig(tmp_path / "out", ("attached", "span-32"), data=(str(tmp_path / "nothing"),))
    with pytest.raises(FileNotFoundError):
        run(config)
    assert run(replace(config, dry_run=True)) == {}
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "attached: the action loss moves the contexts too"
    assert lines[1] == "span-32: contexts in a span of 32 directions"
    assert lines[2].startswith("Before they can be trained: ") and not (tmp_path / "out").exists()


def test_the_table():
    def entry(method: str, region: str, value: float | None, play: int = 10) -> dict:
        settings = {"method": method, "region": region, "scenario": "camera", "play": [play]}
        if value is None:
            return {"label": "all", "settings": settings, "error": "x"}
        success = {"value": value, "low": 0.0, "high": 1.0}
        return {"label": "all", "settings": settings, "summary": {str(play): {"success": success}}}

    cells = [entry("selfalign", "heldout", 0.5), entry("selfalign", "source", None), entry("frozen", "heldout", 0.01)]
    told = {"play 10": "50 % [0, 100]", "oracle": "failed", "before": "1 % [0, 100]"}
    assert tabulate({"cells": cells}) == {("all", "camera"): told}
