"""The work of the aligner's process, run here: what is measured, what is fitted, what is accepted."""

import json

import numpy as np
import pytest
import torch

from align.factory import HORIZON, make_play, small_policy
from online.steps import many_steps
from selfalign.align.bank import PlayBank
from selfalign.align.measure import EvalGrid
from selfalign.align.offline import AlignConfig
from selfalign.data.normalize import NormStats
from selfalign.model.context import EmbodimentContext
from selfalign.online.experience import to_play
from selfalign.online.jobs import AlignJob, Material, MeasureJob, from_json, to_json
from selfalign.online.ring import Ring


@pytest.fixture(scope="module")
def policy():
    return small_policy()


@pytest.fixture
def ring(tmp_path):
    ring = Ring(tmp_path / "ring", 2**22)
    for step in many_steps(6, every=1):
        ring.append(step.pack())
    return ring


def prior_file(policy, folder, seed: int | None = None):
    """The prior with statistics of the made-up robot; with a seed, moved at random."""
    context = policy.model.prior().detach()
    if seed is not None:
        context = context.perturbed(1.0, generator=torch.Generator().manual_seed(seed))
    info = {"embodiment": "toy", "fingerprint": policy.fingerprint(), "norm_stats": make_play().stats().to_dict()}
    return context.with_info(**info).save(folder / f"{seed}.safetensors")


def test_jobs_pass_as_json(policy, ring, tmp_path):
    material = Material("toy", ring.snapshot(), 3, 64)
    live = tmp_path / "a.safetensors"
    for job in (MeasureJob(material, live, {"before": live}), AlignJob(material, live, tmp_path / "out", None, 0.05)):
        assert from_json(json.loads(json.dumps(to_json(job)))) == job


def test_contexts_are_measured_on_the_same_transitions_with_the_statistics_in_use(policy, ring, tmp_path):
    files = {"live": prior_file(policy, tmp_path), "before": prior_file(policy, tmp_path, 1)}
    foreign = EmbodimentContext.load(files["before"]).with_info(norm_stats=make_play(scale=9.0).stats().to_dict())
    foreign.save(files["before"])
    first = ring.end - 2 * 17
    reply = MeasureJob(Material("toy", ring.snapshot(), first, 20), files["live"], {"before": files["before"]}).run(
        policy, 512
    )
    play = to_play(many_steps(6, every=1)[-34:], HORIZON, "toy")
    assert reply["transitions"] == play.num_transitions(HORIZON) == 26
    grid = EvalGrid.build(PlayBank.build(policy, play, make_play().stats()), samples=20, times=4, seed=0)
    for name, path in files.items():
        expected = grid.losses(policy.model, EmbodimentContext.load(path), policy.settings.weights)
        assert reply["losses"][name] == pytest.approx(expected.total, rel=1e-6)
        if name == "live":
            assert reply["parts"] == pytest.approx({n: v for n, v in vars(expected).items() if n != "total"}, rel=1e-6)


def test_a_better_context_is_accepted_and_keeps_the_statistics_in_use(policy, ring, tmp_path):
    live, out = prior_file(policy, tmp_path), tmp_path / "fitted.safetensors"
    reply = AlignJob(Material("toy", ring.snapshot(), 0, 1000), live, out, 30, 0.05).run(policy, 512)
    assert reply["accepted"] and reply["transitions"] == 6 * 13 and reply["curve"][0][0] == 0
    fitted = policy.load_context(out)
    assert fitted.info.embodiment == "toy" and fitted.info.norm_stats == make_play().stats().to_dict()
    assert NormStats.from_dict(fitted.info.norm_stats).action_dim == 3
    assert fitted.distance(EmbodimentContext.load(live)) > 0.1
    again = AlignJob(Material("toy", ring.snapshot(), 0, 1000), out, tmp_path / "second", 30, 0.05).run(policy, 512)
    assert not again["accepted"] and "below the start" in again["verdict"]["text"]
    assert not (tmp_path / "second").exists(), "a rejected one is not written"
    assert again["verdict"]["before"] == pytest.approx(reply["verdict"]["after"], rel=1e-5)


def test_only_what_came_since_counts(policy, ring, tmp_path):
    play = Material("toy", ring.snapshot(), ring.end - 17, 1000).play(HORIZON)
    assert len(play) == 1
    np.testing.assert_array_equal(play.episodes[0].state, np.stack([s.state for s in many_steps(6, every=1)[-17:]]))
    with pytest.raises(ValueError, match="toy has no transition"):
        Material("toy", ring.snapshot(), ring.end, 1000).play(HORIZON)


def test_contexts_are_judged_on_what_was_held_out_by_as_much_as_the_job_asks(policy, ring, tmp_path):
    live = prior_file(policy, tmp_path, 1)
    material = Material("toy", ring.snapshot(), 0, 1000)
    reply = AlignJob(material, live, tmp_path / "fitted", 30, 0.05).run(policy, 512)
    assert reply["accepted"]
    config, play = AlignConfig(), to_play(many_steps(6, every=1), HORIZON, "toy")
    bank = PlayBank.build(policy, play.split(config.holdout, 0)[1], make_play().stats())
    grid = EvalGrid.build(bank, samples=config.eval_samples, times=config.eval_times, seed=0)
    for name, path in (("before", live), ("after", tmp_path / "fitted")):
        losses = grid.losses(policy.model, EmbodimentContext.load(path), policy.settings.weights)
        assert reply["verdict"][name] == pytest.approx(losses.total, rel=1e-5)
    strict = AlignJob(material, live, tmp_path / "strict", 30, 0.99).run(policy, 512)
    assert not strict["accepted"] and not (tmp_path / "strict").exists()
    assert strict["verdict"]["after"] == pytest.approx(reply["verdict"]["after"], rel=1e-5)
