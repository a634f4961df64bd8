"""Tuning: equally many seeded trials, all written down, and an interrupted run that goes on."""

import json
import math
from dataclasses import asdict, replace

import pytest

from align.factory import make_play, small_policy
from baselines.factory import make_demonstrations
from selfalign.baselines import METHODS, fit, tune
from selfalign.baselines.samples import action_losses
from selfalign.baselines.tune import Subject, TuneConfig, loss_on_judged, trial_config
from selfalign.cli import main


def subjects(*names: str) -> list[Subject]:
    return [
        Subject(name, make_play(3, 8, seed=i), make_demonstrations(1), make_demonstrations(2, 7))
        for i, name in enumerate(names)
    ]


@pytest.fixture
def quick(monkeypatch):
    """Methods that fit nothing: what is tested is the search."""
    plain = fit("frozen", small_policy(), make_play(3, 8))
    monkeypatch.setattr(tune, "fit", lambda name, *given, config, **more: replace(plain, config=asdict(config)))


def by_rate(adapted, subject) -> float:
    """A made-up score: rates near 1e-3 are good, and bodies differ."""
    return abs(math.log10(adapted.config["learning_rate"]) + 3) + (1.0 if subject.name == "b" else 0.0)


def test_trials_are_drawn_from_the_space_and_the_first_is_the_default():
    method = METHODS["lora"]
    configs = [trial_config(method, method.config(), trial, seed=4) for trial in range(6)]
    assert configs[0] == method.config()
    assert configs == [trial_config(method, method.config(), trial, seed=4) for trial in range(6)]
    assert len({c.learning_rate for c in configs}) == 6
    assert configs[1] != trial_config(method, method.config(), 1, seed=5)
    assert all(1e-4 <= c.learning_rate <= 1e-2 and c.rank in (2, 4, 8, 16, 32) for c in configs)
    assert all(c.batch_size == method.config().batch_size for c in configs)


def test_all_trials_are_written_and_the_best_has_the_least_mean(quick, tmp_path):
    path = tmp_path / "out" / "tune.json"
    result = tune.tune("lora", small_policy(), subjects("a", "b"), 5, seed=1, path=path, score=by_rate)
    assert json.loads(path.read_text()) == result
    assert len(result["trials"]) == 5
    expected = [abs(math.log10(t["config"]["learning_rate"]) + 3) + 0.5 for t in result["trials"]]
    assert [t["score"] for t in result["trials"]] == pytest.approx(expected, abs=1e-5)
    assert result["best"] == min(range(5), key=lambda i: expected[i])
    assert all(len(t["scores"]) == 2 for t in result["trials"])


def test_an_interrupted_search_goes_on_and_ends_the_same(quick, tmp_path):
    path, policy = tmp_path / "tune.json", small_policy()
    calls = []

    def breaks_off(adapted, subject):
        calls.append(subject.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return by_rate(adapted, subject)

    with pytest.raises(KeyboardInterrupt):
        tune.tune("pad", policy, subjects("a"), 4, path=path, score=breaks_off)
    assert len(json.loads(path.read_text())["trials"]) == 2
    resumed = tune.tune("pad", policy, subjects("a"), 4, path=path, score=breaks_off)
    assert len(calls) == 3 + 2
    whole = tune.tune("pad", policy, subjects("a"), 4, score=by_rate)
    drop = [{k: v for k, v in t.items() if k != "seconds"} for t in resumed["trials"]]
    assert drop == [{k: v for k, v in t.items() if k != "seconds"} for t in whole["trials"]]
    assert resumed["best"] == whole["best"]
    # Asking for no more than is there measures nothing.
    tune.tune("pad", policy, subjects("a"), 3, path=path, score=breaks_off)
    assert len(calls) == 5


def test_another_measurement_is_not_mixed_in(quick, tmp_path):
    path = tmp_path / "tune.json"
    tune.tune("pad", small_policy(), subjects("a"), 1, path=path, score=by_rate)
    with pytest.raises(ValueError, match=r"differs in bodies; write to another"):
        tune.tune("pad", small_policy(), subjects("b"), 1, path=path, score=by_rate)
    with pytest.raises(ValueError, match=r"differs in fingerprint, defaults\.steps;"):
        tune.tune("pad", small_policy(seed=1), subjects("a"), 1, path=path, config={"steps": 7}, score=by_rate)


def test_scores_that_are_not_finite_are_never_best(quick):
    def sometimes(adapted, subject):
        return math.nan if adapted.config["steps"] == 100 else 1.0  # the default is 100

    result = tune.tune("pad", small_policy(), subjects("a"), 6, score=sometimes)
    assert result["trials"][0]["score"] is None and result["trials"][0]["scores"] == [None]
    assert result["trials"][result["best"]]["score"] == 1.0
    hopeless = tune.tune("pad", small_policy(), subjects("a"), 2, score=lambda adapted, subject: math.inf)
    assert hopeless["best"] is None


def test_a_method_without_settings_has_one_trial():
    (subject,) = subjects("a")
    policy = small_policy()
    result = tune.tune("frozen", policy, [subject], 9)
    assert len(result["trials"]) == 1
    stats = subject.play.stats()
    expected = action_losses(policy, subject.judged, stats, {"prior": policy.model.prior()})
    assert result["trials"][0]["score"] == pytest.approx(expected["prior"], abs=1e-5)


def test_the_score_reads_context_and_statistics_of_what_was_fitted():
    (subject,) = subjects("a")
    adapted = fit("frozen", small_policy(), subject.play)
    stats = make_play(4, 14, seed=8).stats()
    context = adapted.context.perturbed(1.0).with_info(norm_stats=stats.to_dict())
    contexts = {"own": context, "other": adapted.context}
    told = action_losses(adapted.policy, subject.judged, stats, contexts)
    own = told["own"]
    assert loss_on_judged(replace(adapted, context=context), subject) == pytest.approx(own, abs=1e-6)
    by_its_play = action_losses(adapted.policy, subject.judged, subject.play.stats(), contexts)["own"]
    for other in (told["other"], by_its_play):
        assert abs(other - own) > 1e-4


def test_demonstrations_that_cannot_judge_are_named():
    (subject,) = subjects("a")
    adapted = fit("frozen", small_policy(), subject.play)
    with pytest.raises(ValueError, match="no demonstration that judges a is longer than a chunk of actions"):
        loss_on_judged(adapted, replace(subject, judged=()))


def test_flags_are_checked_before_anything_is_recorded(tmp_path, capsys):
    with pytest.raises(ValueError, match=r"trials=0 \(at least 1\)"):
        TuneConfig("lora", trials=0)
    with pytest.raises(ValueError, match="choose for selfalign"):
        TuneConfig("selfalign", choose=tmp_path / "choices.json")
    with pytest.raises(ValueError, match="no method 'magic'"):
        TuneConfig("magic")
    wrong = {"{": "is not JSON", "[1]": "is not an object", '{"ranks": 1}': "no setting 'ranks'"}
    for settings, message in wrong.items():
        with pytest.raises(ValueError, match=message):
            TuneConfig("lora", settings=settings)
    assert main(["bench", "tune", "--method", "lora", "--checkpoint", str(tmp_path / "none")]) == 2
    assert "none" in capsys.readouterr().err
