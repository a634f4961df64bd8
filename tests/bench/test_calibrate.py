"""`bench calibrate` measures good and bad attempts, fits them, and writes the checkpoint's calibration."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import selfalign as sa
from align.factory import make_play, small_policy
from selfalign.align.offline import judging_grid
from selfalign.align.verdict import judge
from selfalign.bench import calibrate
from selfalign.bench.attempts import read_attempts
from selfalign.bench.calibrate import CalibrateConfig, late, run
from selfalign.bench.rollout import RolloutConfig
from selfalign.calibration import Calibration
from selfalign.checkpoint import set_acting, set_calibration
from selfalign.provenance import write_json
from selfalign.sim.seeds import VALIDATION_FROM

pytestmark = pytest.mark.filterwarnings("ignore:near-constant dimensions")

SMALL = {
    "scenarios": ("action",),
    "bodies": 2,
    "play": 3,
    "play_length": 11,
    "episodes": 1,
    "steps": (1,),
    "demonstrations": 1,
    "execute": 8,
    "num_steps": 1,
    "workers": 1,
}
KINDS = ("before", "after_1", "aligned", "random", "short", "late", "axes", "swap")


@pytest.fixture
def mine(checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(checkpoint, tmp_path / "checkpoint")


def made_up(job) -> str:
    """Rows of a pair, as the real work writes them, in no time."""
    rows = []
    for i, body in enumerate(job.bodies):
        verdicts = {kind: judge(3.0, 1.0 + 0.4 * n + 0.1 * i, 4.0).to_dict() for n, kind in enumerate(KINDS[1:])}
        verdicts["before"] = judge(3.0, 3.0, 4.0).to_dict()
        success = {
            kind: {"successes": s, "episodes": 10, "value": s / 10} for kind, s in zip(KINDS, (0, 2, 9, 0, 7, 4, 9, 0))
        }
        told = {"scenario": job.scenario, "index": job.index + i, "name": body.name, "body": body.to_dict()}
        rows.append({**told, "success": success, "verdicts": verdicts, "action_loss": {"aligned": 0.2}})
    (job.folder / "contexts").mkdir(exist_ok=True)
    write_json(job.row_path, rows)
    return job.key


def test_a_pair_is_measured_well_and_badly(mine: Path, tmp_path: Path):
    config = CalibrateConfig(mine, out=tmp_path / "out" / "c.json", contexts=tmp_path / "contexts", **SMALL)
    result = run(config, show=False)
    assert json.loads(config.out.read_text()) == result
    assert [path.name for path in config.out.parent.iterdir()] == ["c.json"]
    policy = sa.load(mine)
    assert policy.calibration == Calibration.from_dict(result["calibration"])
    assert policy.calibration.task == "reach" and policy.calibration.bodies == 2
    first, second = result["bodies"]
    for row in (first, second):
        assert set(row["success"]) == set(row["verdicts"]) == set(KINDS)
        assert set(row["action_loss"]) == set(KINDS) - {"short", "late", "axes", "swap"}
        losses = {kind: verdict["after"] for kind, verdict in row["verdicts"].items()}
        assert len(set(losses.values())) == len(losses), "every context has a loss of its own"
        assert len({row["verdicts"][kind]["before"] for kind in ("before", "after_1", "aligned", "swap")}) == 1
    with pytest.raises(ValueError, match="holds files already, such as contexts of other measurements"):
        run(replace(config, out=tmp_path / "other.json"), show=False)
    contexts = [policy.load_context(path) for path in sorted(config.contexts.iterdir())]
    assert {context.info.embodiment for context in contexts} == {first["name"], second["name"]}


def test_the_grid_is_the_one_that_align_judges_by():
    policy, play, seen = small_policy(), make_play(), set()
    for config in (sa.AlignConfig(steps=4), sa.AlignConfig(steps=4, holdout=0.4, seed=3, eval_samples=9)):
        result = sa.align(policy, play, config=config, progress=False)
        grid = judging_grid(policy, play, result.stats, config)
        found = grid.losses(policy.model, result.fitted, policy.settings.weights)
        assert found.total == result.verdict.after
        seen.add((len(grid.bank), len(grid.rows)))
    assert len(seen) == 2, "another config, another grid"


def test_late_actions_stand_after_their_own():
    play = make_play(2)
    (first, _), (changed, _) = play.episodes, late(play, 3).episodes
    np.testing.assert_array_equal(changed.action[3:], first.action[:-3])
    np.testing.assert_array_equal(changed.state, first.state)


def test_an_interrupted_run_goes_on(mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = CalibrateConfig(mine, out=tmp_path / "c.json", **{**SMALL, "scenarios": ("camera", "action"), "bodies": 4})
    done: list[str] = []

    def interrupted(job):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(made_up(job))

    monkeypatch.setattr(calibrate, "measure_pair", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(config, show=False)
    assert not config.out.exists() and sa.load(mine).calibration is None
    later: list[str] = []
    monkeypatch.setattr(calibrate, "measure_pair", lambda job: later.append(made_up(job)))
    result = run(config, show=False)
    assert sorted(done + later) == ["action-000", "action-002", "camera-000", "camera-002"] and len(later) == 2
    assert [row["index"] for row in result["bodies"]] == [0, 1, 2, 3] * 2 and result["provenance"]["seconds"] is None
    monkeypatch.setattr(calibrate, "measure_pair", None)
    assert run(config, show=False) == result, "finished work is not repeated"
    with pytest.raises(ValueError, match=r"c\.json holds these measurements already, but their contexts were not kept"):
        run(replace(config, contexts=tmp_path / "contexts"), show=False)


def test_what_was_measured_outlives_a_full_disk(mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = CalibrateConfig(mine, out=tmp_path / "c.json", contexts=tmp_path / "contexts", **SMALL)

    def measured(job) -> str:
        key = made_up(job)
        (job.folder / "contexts" / "a.safetensors").write_bytes(b"a")
        return key

    monkeypatch.setattr(calibrate, "measure_pair", measured)

    def full(path, data):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
        patched.setattr(calibrate, "write_json", full)
        run(config, show=False)
    assert not config.contexts.exists(), "contexts of no measurements"
    monkeypatch.setattr(calibrate, "measure_pair", None)  # nothing is measured again
    assert run(config, show=False)["bodies"] and [p.name for p in tmp_path.glob("c*.json*")] == ["c.json"]
    assert [(p.name, p.read_bytes()) for p in config.contexts.iterdir()] == [("a.safetensors", b"a")]
    assert not (tmp_path / "contexts.partial").exists()


def test_bodies_are_asked_the_task_and_the_calibration_says_which(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(calibrate, "measure_pair", made_up)
    config = CalibrateConfig(mine, out=tmp_path / "c.json", task="push", **SMALL)
    assert config.rollout(5) == RolloutConfig(("push",), 1, 5, 8, 1)
    run(config, show=False)
    assert sa.load(mine).calibration.task == "push"


def test_checking_changes_nothing(mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(calibrate, "measure_pair", made_up)
    config = CalibrateConfig(mine, out=tmp_path / "check.json", seed=0, check=True, **SMALL)
    with pytest.raises(ValueError, match="has no calibration to check"):
        run(config, show=False)
    run(replace(config, seed=VALIDATION_FROM, check=False, out=tmp_path / "fit.json"), show=False)
    before = {path.name: path.read_bytes() for path in mine.iterdir()}
    result = run(config, show=False)
    assert {path.name: path.read_bytes() for path in mine.iterdir()} == before
    assert result["checked"] == sa.load(mine).calibration.to_dict() and "calibration" not in result
    (aligned,) = [a for a in read_attempts(result["bodies"][0], "", sa.load(mine).calibration) if a.kind == "aligned"]
    assert aligned.verdict.accepted and aligned.verdict.expected is not None


def test_what_was_measured_of_other_acting_is_measured_again(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = CalibrateConfig(mine, out=tmp_path / "c.json", **SMALL)
    monkeypatch.setattr(calibrate, "measure_pair", made_up)
    set_acting(mine, sa.Acting(2.0))
    old = run(config, show=False)
    set_acting(mine, sa.Acting())
    with pytest.raises(ValueError, match=r"of acting at speed 2, temperature 1, .* acts at speed 1, temperature 1"):
        set_calibration(mine, Calibration.from_dict(old["calibration"]))
    measured: list[str] = []
    monkeypatch.setattr(calibrate, "measure_pair", lambda job: measured.append(made_up(job)))
    with pytest.raises(ValueError, match=r"another result, which would be lost: it differs in acting;"):
        run(config, show=False)
    again = run(replace(config, out=tmp_path / "again.json"), show=False)
    assert again["acting"] is None and measured and json.loads(config.out.read_text()) == old
    assert sa.load(mine).calibration.source.get("acting") is None


def test_errors_come_before_the_work(tmp_path: Path):
    with pytest.raises(ValueError, match=r"seed=0 \(at least 1000000: those below are for results"):
        CalibrateConfig(seed=0)
    with pytest.raises(ValueError, match="bodies=3"):
        CalibrateConfig(bodies=3)
    with pytest.raises(FileNotFoundError, match="none"):
        run(CalibrateConfig(tmp_path / "none"), show=False)
