from dataclasses import replace

import numpy as np
import pytest
import torch

from align.factory import make_play, small_policy
from selfalign import baselines
from selfalign.align import offline
from selfalign.align.offline import AlignConfig, align
from selfalign.baselines.samples import action_losses
from selfalign.bench.rollout import Arena
from selfalign.bench.subject import ALIGNED, BEFORE, RANDOM, after, align_stepwise, body_seed, collect_play
from selfalign.checkpoint import load
from selfalign.sim.bodies import sample_bodies
from selfalign.sim.record import record_demonstrations

# Play as short as in these tests may leave the gripper alone.
pytestmark = pytest.mark.filterwarnings("ignore:near-constant dimensions")


@pytest.fixture(scope="module")
def story(checkpoint, panda_arena: Arena):
    policy, body = load(checkpoint), sample_bodies(1, seed=2, scenario="action")[0]
    play = collect_play(policy, body, 3, 14, 5, panda_arena.simulations(1)[0])
    return policy, body, play, align_stepwise(policy, play, (1, 4), seed=9)


def test_seeds_differ_between_bodies_and_agree_between_runs():
    assert body_seed(3, 0, 1) == body_seed(3, 0, 1)
    assert len({body_seed(3, role, index) for role in (0, 1) for index in range(50)}) == 100


def test_play_is_in_the_bodys_numbers_and_named(story):
    _, body, play, _ = story
    assert len(play) == 3
    assert play.action_dim == body.action_dim
    assert play.name == body.name == play.embodiment["name"]
    assert play.episodes[0].images["scene"].shape == (14, 96, 96, 3)


def test_contexts_of_one_fit(story):
    policy, _, play, fitted = story
    contexts = fitted.contexts
    # Two steps are usual for this checkpoint; 1 and 4 are of a run of their own.
    assert list(contexts) == [BEFORE, after(1), after(4), ALIGNED, RANDOM]
    prior = policy.model.prior()
    assert contexts[BEFORE].distance(prior) == 0
    moved = [contexts[name].distance(prior) for name in (after(1), after(4))]
    assert 0 < moved[0] < moved[1]
    # The null is as large as what aligning has done, and goes elsewhere.
    own = fitted.result.fitted.distance(prior)
    assert contexts[RANDOM].distance(prior) == pytest.approx(own, rel=1e-4)
    assert contexts[RANDOM].distance(fitted.result.fitted) > 0.5 * own
    statistics = play.stats().to_dict()
    assert all(context.info.norm_stats == statistics for context in contexts.values())
    assert {0, 1, 4} <= set(fitted.held_out)


def test_the_null_is_as_large_as_a_fit_that_was_rejected_and_each_body_has_its_own():
    policy, play = small_policy(), make_play()
    still = replace(policy, settings=replace(policy.settings, learning_rate=1e-4, steps=2))
    prior, found = policy.model.prior(), [align_stepwise(still, play, seed=seed) for seed in (1, 1, 2)]
    assert not found[0].result.verdict.accepted and found[0].contexts[ALIGNED].distance(prior) == 0
    sizes = [one.contexts[RANDOM].distance(prior) for one in found]
    assert sizes == pytest.approx([found[0].result.fitted.distance(prior)] * 3, rel=1e-3) and sizes[0] > 0
    first, again, other = (one.contexts[RANDOM] for one in found)
    assert first.distance(again) == 0 < other.distance(first)


def test_action_loss_meets_every_context_with_the_same_noise(story, panda_arena: Arena):
    policy, body, _, fitted = story
    demonstrations = record_demonstrations(body, 1, 3, sim=panda_arena.simulations(1)[0])
    stats = fitted.result.stats
    named = {"a": fitted.contexts[BEFORE], "b": fitted.contexts[BEFORE], "c": fitted.contexts[after(4)]}
    losses = action_losses(policy, demonstrations, stats, named, seed=1)
    assert losses["a"] == losses["b"]
    assert losses["a"] != losses["c"]
    assert np.isfinite(list(losses.values())).all()
    # An untrained flow head predicts about nothing: the loss is about the power of noise minus action.
    assert 0.5 < losses["a"] < 6
    assert action_losses(policy, [], stats, named) == {}
    assert not any(p.grad is not None for p in policy.model.parameters())
    assert torch.is_grad_enabled()


def test_a_measurement_is_ended_by_an_interruption(monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(offline, "gradient", interrupt)
    for begun in (
        lambda: align(small_policy(), make_play(), config=AlignConfig(interruptible=False), progress=False),
        lambda: align_stepwise(small_policy(), make_play()),
        lambda: baselines.fit("selfalign", small_policy(), make_play()),
    ):
        with pytest.raises(KeyboardInterrupt):
            begun()
