"""Alignment moves the context and nothing else, by the gradient of the model's own losses, and is judged honestly."""

import dataclasses
import json
import math
import os

import numpy as np
import pytest
import torch

from align.factory import HORIZON, content_hash, make_episode, make_play, small_policy
from selfalign.align import bank, offline
from selfalign.align.bank import MemoryBudget, PlayBank
from selfalign.align.measure import EvalGrid, PartLosses, draw_noise, gradient, time_quantiles
from selfalign.align.offline import AlignConfig, align
from selfalign.data.play import Play
from selfalign.model import flow
from selfalign.model.context import EmbodimentContext
from selfalign.model.losses import LossWeights
from selfalign.settings import AlignSettings

CONFIG = AlignConfig(eval_every=10, eval_samples=16, eval_times=2)


def equal(a: EmbodimentContext, b: EmbodimentContext) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.tensors, b.tensors, strict=True))


def align_quietly(policy, play, start=None, config=CONFIG, **options):
    return align(policy, play, start, config, progress=False, **options)


# ---- what moves ----------------------------------------------------------------------------------------------------


def test_alignment_moves_the_context_and_nothing_else():
    policy, play = small_policy(), make_play()
    policy.model.train()
    next(policy.model.vision.parameters()).requires_grad_(False)
    flags = [p.requires_grad for p in policy.model.parameters()]
    prior, before = policy.model.prior().clone(), content_hash(policy.model)
    result = align_quietly(policy, play)
    assert result.verdict.accepted
    assert result.context.distance(prior) > 0.1
    assert content_hash(policy.model) == before
    assert policy.model.training and [p.requires_grad for p in policy.model.parameters()] == flags
    assert all(p.grad is None for p in policy.model.parameters())
    assert not any(t.requires_grad for t in result.context.tensors)


def test_a_model_that_has_not_rehearsed_is_named(tmp_path):
    policy, play = small_policy(), make_play()
    settings = dataclasses.replace(policy.settings, rehearsed=False)
    plain, told = (align_quietly(p, play).verdict for p in (policy, dataclasses.replace(policy, settings=settings)))
    assert plain.note == "" and told == dataclasses.replace(plain, note=offline.UNREHEARSED)
    assert str(told).endswith("; " + offline.UNREHEARSED)


def test_a_rejected_alignment_leaves_the_start_context():
    policy, play = small_policy(), make_play()
    start = align_quietly(policy, play).context
    kept = start.clone()
    # Fitted already: with so small a step nothing can improve by the share that is asked for.
    result = align_quietly(policy, play, start, dataclasses.replace(CONFIG, learning_rate=1e-9, steps=3))
    assert not result.verdict.accepted and "below the start" in result.verdict.reason
    assert result.context is start
    assert equal(start, kept)
    assert result.fitted is not start


def test_a_rejected_alignment_from_the_prior_returns_the_prior_bit_for_bit():
    policy, play = small_policy(), make_play()
    result = align_quietly(policy, play, config=dataclasses.replace(CONFIG, learning_rate=1e-9, steps=3))
    assert not result.verdict.accepted
    assert equal(result.context, policy.model.prior())
    assert result.context.info.norm_stats == play.stats().to_dict()
    assert result.context.info.history is None and result.context.info.verdict["accepted"] is False


# ---- how it moves --------------------------------------------------------------------------------------------------


def first_batch(policy, play, seed: int):
    """The first batch that `align` draws, without any cache: pixels in, and no precomputed feature."""
    stats = play.stats()
    train, _ = play.split(CONFIG.holdout, seed)
    transitions = policy.transitions(train, stats)
    images = np.concatenate([e.images["scene"][: len(e) - HORIZON] for e in train.episodes])
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    observation = dataclasses.replace(transitions.observation, images={"scene": pixels}, image_features=None)
    generator = torch.Generator().manual_seed(seed)
    size = policy.settings.batch_size
    rows = torch.randperm(len(images), generator=generator)[:size]
    batch = dataclasses.replace(transitions, observation=observation)[rows]
    noise = draw_noise(batch, generator)
    return batch, noise, flow.sample_time(size, generator=generator)


def test_the_first_step_follows_plain_autograd_through_the_whole_model():
    policy, play = small_policy(), make_play()
    batch, noise, time = first_batch(policy, play, seed=3)
    leaf = policy.model.prior().leaf()
    losses = policy.model.losses(batch, leaf, noise=noise, time=time, parts=("alignment",))
    losses.total.backward()
    norm = torch.nn.utils.clip_grad_norm_(leaf.tensors, 1.0)
    torch.optim.Adam(leaf.tensors, lr=3e-2, betas=(0.9, 0.99)).step()

    config = dataclasses.replace(CONFIG, seed=3, steps=1)
    result = align_quietly(policy, play, config=config, snapshots=(1,))
    assert result.history.train["total"][0] == pytest.approx(losses.total.item(), rel=1e-5)
    assert result.history.grad_norm[0] == pytest.approx(norm.item(), rel=1e-4)
    torch.testing.assert_close(result.snapshots[1].tensors, leaf.detach().tensors, rtol=0, atol=1e-5)


def test_cached_and_uncached_prefixes_give_one_gradient():
    policy, play = small_policy(), make_play()
    batch, noise, time = first_batch(policy, play, seed=0)
    fitted = PlayBank.build(policy, play.split(CONFIG.holdout, 0)[0], play.stats())
    rows = torch.randperm(len(fitted), generator=torch.Generator().manual_seed(0))[: policy.settings.batch_size]
    cached, prefix = fitted.batch(rows)
    context = policy.model.prior().perturbed(1.0)
    zeros = policy.model.contexts.zeros(context)
    _, plain = gradient(policy.model, batch, context, zeros, noise=noise, time=time)
    _, fast = gradient(policy.model, cached, context, zeros, noise=noise, time=time, prefix=prefix)
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-6)


def test_a_batch_with_a_context_each_equals_one_by_one():
    policy, play = small_policy(), make_play()
    batch, noise, time = first_batch(policy, play, seed=0)
    size = len(time)
    contexts = [policy.model.prior().perturbed(1.0) for _ in range(size)]
    together = policy.model.losses(
        batch, EmbodimentContext.stack(contexts), noise=noise, time=time, parts=("alignment",), reduction="none"
    )
    for i in (0, 7, size - 1):
        row = slice(i, i + 1)
        one = dataclasses.replace(
            noise, actions=noise.actions[row], state=noise.state[row], next_features=noise.next_features[row]
        )
        alone = policy.model.losses(batch[row], contexts[i], noise=one, time=time[row], parts=("alignment",))
        assert alone.total.item() == pytest.approx(together.total[i].item(), rel=1e-4)


def test_weights_of_zero_switch_a_loss_off():
    policy, play = small_policy(), make_play()
    only_ttt = LossWeights(perception=0, dynamics=0, inverse=0)
    history = align_quietly(policy, play, config=dataclasses.replace(CONFIG, weights=only_ttt, steps=2)).history
    np.testing.assert_allclose(history.train["total"], history.train["ttt"], rtol=1e-6)


# ---- what comes of it ----------------------------------------------------------------------------------------------


def test_the_held_out_loss_falls_on_play_that_can_be_learned():
    policy, play = small_policy(), make_play(8)
    result = align_quietly(policy, play, config=dataclasses.replace(CONFIG, steps=60))
    history, verdict = result.history, result.verdict
    assert verdict.accepted and verdict.after < 0.9 * verdict.before and verdict.after < verdict.null
    assert history.held_out["total"][0] == verdict.before and min(history.held_out["total"][1:]) == verdict.after
    assert history.steps == 60 and history.held_out_steps == (0, 10, 20, 30, 40, 50, 60)
    assert history.train_transitions + history.held_out_transitions == play.num_transitions(HORIZON)
    assert np.mean(history.train["total"][-10:]) < np.mean(history.train["total"][:10])


def test_the_same_seed_gives_the_same_context_and_another_seed_another():
    policy, play = small_policy(), make_play()
    first, second = (align_quietly(policy, play).context for _ in range(2))
    assert equal(first, second)
    assert not equal(first, align_quietly(policy, play, config=dataclasses.replace(CONFIG, seed=1)).context)


def test_the_result_carries_its_story(tmp_path):
    policy, play = small_policy(), make_play()
    result = align_quietly(policy, play, snapshots=(5, 20, 1000))
    info = result.context.info
    assert (info.embodiment, info.fingerprint) == ("toy", policy.model.fingerprint())
    assert info.norm_stats == play.stats().to_dict()
    assert info.verdict == result.verdict.to_dict() and info.history == result.history.to_dict()
    assert set(result.snapshots) == {5, 20}
    assert result.snapshots[5].info.norm_stats == info.norm_stats
    assert {5, 20} <= set(result.history.held_out_steps)
    loaded = policy.load_context(result.context.save(tmp_path / "toy.safetensors"))
    assert equal(loaded, result.context) and loaded.info == info


def test_the_best_context_is_kept_not_the_last(monkeypatch):
    losses = iter([5.0, 4.0, 2.0, 3.0, 2.5, *[6.0] * CONFIG.null_draws])
    monkeypatch.setattr(EvalGrid, "losses", lambda *_: PartLosses(next(losses), 0.0, 0.0, 0.0, 0.0))
    config = dataclasses.replace(CONFIG, steps=8, eval_every=2)
    result = align_quietly(small_policy(), make_play(), config=config, snapshots=(4, 8))
    assert result.history.best_step == 4
    assert equal(result.context, result.snapshots[4]) and not equal(result.context, result.snapshots[8])
    assert str(result.verdict) == "accept: held-out play loss 5.00 -> 2.00 (null 6.00)"


# ---- when it stops -------------------------------------------------------------------------------------------------


def measured_as(monkeypatch, *totals: float) -> None:
    """What held-out play gives, one measurement after the other; then the last for ever."""
    given = iter(totals)
    monkeypatch.setattr(EvalGrid, "losses", lambda *_: PartLosses(next(given, totals[-1]), 0.0, 0.0, 0.0, 0.0))


def test_patience_counts_measurements_since_the_best(monkeypatch):
    measured_as(monkeypatch, 5.0, 4.0, 4.5, 3.0, 3.5, 3.2, 3.1)
    config = dataclasses.replace(CONFIG, eval_every=1, patience=3)
    history = align_quietly(small_policy(), make_play(), config=config).history
    assert (history.steps, history.best_step) == (6, 3)
    assert history.stopped == "no better held-out loss in 3 measurements"


def test_a_loss_at_the_threshold_is_enough(monkeypatch):
    measured_as(monkeypatch, 5.0, 4.0, 3.0, 2.0)
    history = align_quietly(
        small_policy(), make_play(), config=dataclasses.replace(CONFIG, eval_every=1, loss_threshold=3.0)
    ).history
    assert history.steps == 2 and history.stopped == "the held-out loss is at most 3.0"


def test_patience_ends_a_fit_that_has_stopped_improving_but_waits_for_snapshots():
    policy, play = small_policy(), make_play()
    config = dataclasses.replace(CONFIG, learning_rate=1e-12, steps=50, eval_every=1, patience=3)
    result = align_quietly(policy, play, config=config)
    assert result.history.steps < 50 and "no better held-out loss" in result.history.stopped
    waited = align_quietly(policy, play, config=config, snapshots=(30,))
    assert waited.history.steps >= 30 and set(waited.snapshots) == {30}


def test_the_threshold_ends_a_fit():
    policy, play = small_policy(), make_play()
    before = align_quietly(policy, play, config=dataclasses.replace(CONFIG, steps=1)).verdict.before
    result = align_quietly(policy, play, config=dataclasses.replace(CONFIG, loss_threshold=before, eval_every=1))
    assert result.history.steps < 30 and "at most" in result.history.stopped


def test_an_interruption_keeps_the_best_so_far(monkeypatch):
    policy, play = small_policy(), make_play()
    real, calls = offline.gradient, []

    def interrupted_at_17(*args, **kwargs):
        calls.append(1)
        if len(calls) == 17:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(offline, "gradient", interrupted_at_17)
    result = align_quietly(policy, play)
    assert result.history.steps == 16 and result.history.held_out_steps == (0, 10, 16)
    assert result.verdict.accepted and str(result.verdict).endswith("; interrupted after 16 of 30 steps")
    assert equal(result.context, result.fitted)


def test_an_interruption_before_the_first_step_is_rejected(monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(offline, "gradient", interrupt)
    policy = small_policy()
    result = align_quietly(policy, make_play())
    assert not result.verdict.accepted and result.verdict.reason == "no step was taken"
    assert equal(result.context, policy.model.prior())


def test_a_loss_that_is_not_finite_is_rejected_with_the_step(monkeypatch, tmp_path):
    policy, play = small_policy(), make_play()
    real, calls = offline.gradient, []

    def broken_at_13(*args, **kwargs):
        calls.append(1)
        losses, grads = real(*args, **kwargs)
        return losses, [g * (math.nan if len(calls) == 13 else 1) for g in grads]

    monkeypatch.setattr(offline, "gradient", broken_at_13)
    result = align_quietly(policy, play)
    assert not result.verdict.accepted and "not finite at step 13" in result.verdict.reason
    assert equal(result.context, policy.model.prior())
    assert all(torch.isfinite(t).all() for t in result.fitted.tensors)
    json.dumps(result.fitted.info.history, allow_nan=False)


# ---- settings ------------------------------------------------------------------------------------------------------


def test_settings_come_from_the_checkpoint_unless_given():
    settings = AlignSettings(learning_rate=0.5, steps=7, clip_norm=2.0)
    assert AlignConfig().resolved(settings) == settings
    plan = AlignConfig(steps=9, clip_norm=math.inf).resolved(settings)
    assert (plan.steps, plan.clip_norm, plan.learning_rate) == (9, None, 0.5)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"eval_every": 0}, {"patience": 0}, {"min_improvement": 1.0}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AlignConfig(**wrong)


# ---- errors --------------------------------------------------------------------------------------------------------


def test_play_with_nan_names_the_place():
    episode = make_episode(0)
    episode.action[3, 1] = np.nan
    with pytest.raises(ValueError, match="episode 1, frame 3, column 'action', dimension 1"):
        Play.from_episodes([make_episode(1), episode])


def test_play_that_is_too_short_says_so():
    policy = small_policy()
    with pytest.raises(ValueError, match=rf"too short: a transition needs {HORIZON + 1} frames, the longest .* has 4"):
        align_quietly(policy, make_play(length=HORIZON))
    with pytest.raises(ValueError, match="too short: its 1 episodes leave episodes of 3 frames to judge"):
        align_quietly(policy, make_play(count=1, length=15))


def test_play_that_does_not_fit_the_model_says_so():
    policy = small_policy()
    wide = [dataclasses.replace(make_episode(i), action=np.zeros((16, 9), np.float32)) for i in range(3)]
    with pytest.raises(ValueError, match="9 action dimensions, the model takes at most 5"):
        align_quietly(policy, Play.from_episodes(wide))
    other = [dataclasses.replace(make_episode(i), images={"wrist": make_episode(i).images["scene"]}) for i in range(3)]
    with pytest.raises(ValueError, match="has the cameras wrist, the model knows scene"):
        align_quietly(policy, Play.from_episodes(other))


def test_a_start_context_of_another_model_is_refused():
    start = align_quietly(small_policy(0), make_play()).context
    with pytest.raises(ValueError, match="a context means nothing to another model"):
        align_quietly(small_policy(1), make_play(), start)
    with pytest.raises(ValueError, match="one context"):
        align_quietly(small_policy(0), make_play(), EmbodimentContext.stack([start, start]))


# ---- the parts -----------------------------------------------------------------------------------------------------


def test_the_grid_gives_the_same_number_every_time_and_quantiles_of_the_training_times():
    policy, play = small_policy(), make_play()
    grid = EvalGrid.build(PlayBank.build(policy, play, play.stats()), samples=10, times=3)
    context = policy.model.prior()
    first = grid.losses(policy.model, context)
    torch.manual_seed(9)
    assert grid.losses(policy.model, context) == first
    assert len(grid.rows) == 30 and len(grid.rows.unique()) == 10
    drawn = flow.sample_time(200_000, generator=torch.Generator().manual_seed(0))
    levels = torch.tensor([0.1, 0.5, 0.9])
    torch.testing.assert_close(time_quantiles(levels), drawn.quantile(levels), rtol=0, atol=5e-3)


def test_prefixes_beyond_the_budget_go_to_a_file_and_read_the_same(tmp_path):
    policy, play = small_policy(), make_play()
    in_memory = PlayBank.build(policy, play, play.stats())
    on_disk = PlayBank.build(policy, play, play.stats(), MemoryBudget(0.0, tmp_path))
    rows = torch.tensor([5, 0, 40])
    for ours, theirs in zip(on_disk.batch(rows)[1].layers, in_memory.batch(rows)[1].layers, strict=True):
        assert torch.equal(ours.k, theirs.k) and torch.equal(ours.v, theirs.v)
    assert list(tmp_path.iterdir()) == []


def test_the_budget_counts_keys_and_values_of_all_layers(monkeypatch):
    policy, play = small_policy(), make_play()
    kept = PlayBank.build(policy, play, play.stats())
    megabytes = sum(t.numel() * t.element_size() for kv in kept.prefix.layers for t in (kv.k, kv.v)) / 1e6
    spilled, mapped = [], bank._mapped
    monkeypatch.setattr(bank, "_mapped", lambda *told: (spilled.append(told), mapped(*told))[1])
    PlayBank.build(policy, play, play.stats(), MemoryBudget(1.001 * megabytes))
    assert not spilled
    PlayBank.build(policy, play, play.stats(), MemoryBudget(0.999 * megabytes))
    assert len(spilled) == 1


def test_each_transition_has_its_own_prefix_in_long_episodes_too():
    policy, play = small_policy(), make_play(2, length=bank.PREFIX_BATCH + HORIZON + 8)
    kept = PlayBank.build(policy, play, play.stats())
    whole = policy.model.prefix(policy.transitions(play, play.stats()).observation)
    for ours, theirs in zip(kept.prefix.layers, whole.layers, strict=True):
        torch.testing.assert_close((ours.k, ours.v), (theirs.k, theirs.v), rtol=1e-4, atol=1e-5)


def test_no_room_for_the_prefixes_is_an_error_and_not_a_crash(tmp_path, monkeypatch):
    def full(handle, offset, size):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    config = dataclasses.replace(CONFIG, memory_budget_mb=0.0, spill_dir=tmp_path)
    with pytest.raises(OSError, match=r"no room for .* MB of prefixes .*memory_budget_mb"):
        align_quietly(small_policy(), make_play(), config=config)
    assert list(tmp_path.iterdir()) == []


def test_known_statistics_are_used_instead_of_the_plays():
    policy, play = small_policy(), make_play()
    known = make_play(seed=9, scale=3.0).stats()
    config = AlignConfig(steps=2, eval_samples=8, eval_times=1)
    result = align(policy, play, config=config, stats=known, progress=False)
    assert result.stats is known and result.fitted.info.norm_stats == known.to_dict()
    own = align(policy, play, config=config, progress=False)
    assert result.verdict.before != own.verdict.before
