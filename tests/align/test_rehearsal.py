"""Rehearsal and its training loop: what moves what, slots, and exact resumption."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from align.factory import make_play, small_policy
from align.rehearsing import HORIZON, make_sources, seeded_state, state_for
from checkpoints import small_sentencepiece
from selfalign.align.optim import FastAdam
from selfalign.data.cache import EpisodeCache
from selfalign.data.changes import RemadeBody
from selfalign.data.episodes import Episode
from selfalign.data.lerobot import LeRobotReader, LeRobotWriter
from selfalign.data.normalize import NormStats
from selfalign.data.perturb import EmbodimentPerturbation, LinearFrame
from selfalign.model.losses import LossWeights
from selfalign.model.tokenizer import ByteTokenizer, PaliGemmaTokenizer
from selfalign.model.weights import unique_tensors
from selfalign.train import checkpoint
from selfalign.train.loop import LoopConfig, run_training
from selfalign.train.step import train_step


def test_a_batch_is_the_recording_in_the_bodys_own_frame(small_sources, small_cache):
    body = small_sources.sample(np.random.default_rng(0), rig=1)
    batch = small_sources.play_batch([body], 6, np.random.default_rng(5))
    rows = np.random.default_rng(5).choice(body.play, size=6)
    frames = body.frames[rows]
    raw = body.perturbation.action_frame.apply(small_cache.column("action"))
    expected = body.stats.normalize_action(np.stack([raw[f : f + HORIZON] for f in frames]))
    np.testing.assert_allclose(batch.actions.values[..., :4].numpy(), expected, rtol=1e-4, atol=1e-5)
    assert batch.actions.values[..., 4:].abs().max() == 0 and not batch.actions.dim_mask[:, 4:].any()
    np.testing.assert_array_equal(batch.next_features, small_sources.features.next_features[frames + HORIZON])
    episodes = small_cache.episode_of_frame
    assert (episodes[frames] == episodes[frames + HORIZON]).all(), "no transition crosses an episode"
    assert batch.observation.tokens.shape == (6, 1), "play has no task words"


@pytest.mark.parametrize("words", ["bytes", "pieces"])
def test_bodies_rehearse_under_the_prompt_that_aligning_gives(small_cache, tmp_path, words):
    """PaliGemma's empty prompt has a line break after the begin token."""
    (tmp_path / "words.model").write_bytes(small_sentencepiece())
    tokenizer = ByteTokenizer(48) if words == "bytes" else PaliGemmaTokenizer(tmp_path / "words.model")
    sources = make_sources(small_cache, tokenizer)
    rng = np.random.default_rng(0)
    rehearsed = sources.play_batch([sources.sample(rng), sources.sample(rng)], 3, rng).observation
    policy, play = replace(small_policy(), tokenizer=tokenizer), make_play()
    aligned = policy.transitions(play, play.stats()).observation
    assert torch.equal(rehearsed.tokens, aligned.tokens[:6])
    assert torch.equal(rehearsed.token_mask, aligned.token_mask[:6])
    assert rehearsed.tokens.shape == (6, 1 if words == "bytes" else 2)


def test_a_remade_body_is_its_changed_recording(small_sources, small_cache):
    """At half the rate, by targets, with one more joint: each episode changed alone, seen at the frames that stay."""
    body = RemadeBody(EmbodimentPerturbation(), swapped=True, step=0.1, every=2, idle_joints=1)
    made = small_sources.embodiment(1, body)
    episodes = [*small_cache.episodes_of(1, True), *small_cache.episodes_of(1, False)]
    spans = [small_cache.episode_starts[e] + np.arange(small_cache.episode_lengths[e]) for e in episodes]
    columns = [(small_cache.column("observation.state")[s], small_cache.column("action")[s]) for s in spans]
    changed = [body.changes.apply(Episode({}, state, action)) for state, action in columns]
    np.testing.assert_array_equal(made.frames, np.concatenate([s[: len(s) // 2 * 2 : 2] for s in spans]))
    play = sum(len(c) for c in changed[: len(made.play_episodes)])
    action = np.concatenate([c.action for c in changed])
    expected = NormStats.from_arrays(np.concatenate([c.state for c in changed])[:play], action[:play])
    np.testing.assert_allclose(made.action[:, :5], expected.normalize_action(action), rtol=1e-4, atol=1e-5)
    assert made.action_mask.sum() == 5 and made.state_mask.sum() == 5
    lengths = [len(c) for c in changed]
    np.testing.assert_array_equal(made.last, np.repeat(np.cumsum(lengths) - 1, lengths))
    batch = small_sources.play_batch([made], 6, np.random.default_rng(5))
    rows = np.random.default_rng(5).choice(made.play, size=6)
    following = small_sources.features.next_features[made.frames[rows + HORIZON]]
    np.testing.assert_array_equal(batch.next_features, following)
    assert (made.frames[rows + HORIZON] == made.frames[rows] + 2 * HORIZON).all()


def test_chunks_beyond_the_end_are_masked(small_sources, small_cache):
    body = small_sources.sample(np.random.default_rng(0), rig=0)
    batch = small_sources.demonstration_batch([body], 64, np.random.default_rng(2))
    rows = np.random.default_rng(2).choice(body.demonstrations, size=64, p=body.demonstration_odds)
    inside = body.last[rows] - rows + 1
    np.testing.assert_array_equal(batch.actions.step_mask.sum(1), np.minimum(inside, HORIZON))


@pytest.mark.parametrize("span", [None, 5])
def test_each_slot_moves_as_if_it_were_aligned_alone(small_sources, span):
    """One training step moves a slot's context by the step that `align`'s optimiser takes on that slot's play alone."""
    state = state_for(small_sources, max_age=50, span=span)
    rehearsal = state.objective
    rehearsal.losses(
        *rehearsal.draw(1)
    ).total.backward()  # draws a first batch; thrown away so that W0 and slots differ
    rehearsal.after_backward()
    state.model.zero_grad()

    snapshot = json.loads(json.dumps(rehearsal.lives.rng.bit_generator.state))
    noise_state = torch.get_rng_state()
    before, moments = rehearsal.coordinates, rehearsal.state
    rehearsal.losses(*rehearsal.draw(1)).total.backward()
    rehearsal.after_backward()

    rehearsal.lives.rng.bit_generator.state = snapshot
    torch.set_rng_state(noise_state)
    play = small_sources.play_batch(rehearsal.lives.bodies, 4, rehearsal.lives.rng)
    prior = state.model.prior()
    leaves = [tuple(c[i].detach().requires_grad_() for c in before) for i in range(3)]
    contexts = [state.model.contexts.context(prior, own) for own in leaves]
    stacked = type(prior).stack(contexts).repeat_interleave(4)
    per_sample = state.model.losses(play, stacked, parts=("alignment",), reduction="none").total
    optimizer = FastAdam(1e-2, (0.9, 0.99), clip_norm=1.0)
    for i, own in enumerate(leaves):
        gradients = torch.autograd.grad(per_sample[4 * i : 4 * i + 4].mean(), own, retain_graph=True)
        alone = type(moments)(tuple(m[i] for m in moments.first), tuple(m[i] for m in moments.second), moments.count[i])
        moved, _ = optimizer.step(own, gradients, alone)
        for expected, actual in zip(moved, rehearsal.coordinates, strict=True):
            torch.testing.assert_close(actual[i], expected, rtol=1e-3, atol=1e-5)


def test_the_action_loss_reads_contexts_but_never_moves_them_or_the_prior(small_sources):
    state = state_for(small_sources)
    rehearsal = state.objective
    losses = rehearsal.losses(*rehearsal.draw(1))
    losses.action.backward()
    assert all(c.grad is None for c in rehearsal._leaves)
    assert all(layer.W1.grad is None and layer.b1.grad is None for layer in state.model.ttt_layers)
    assert state.model.ttt_layers[0].theta_q.weight.grad.abs().max() > 0


def test_the_prior_learns_through_the_alignment_losses(small_sources):
    state = state_for(small_sources)
    before = state.model.prior().clone()
    train_step(state)
    moved = state.model.prior().distance(before)
    assert moved > 0


def test_a_slot_that_reaches_its_age_starts_again_from_the_prior(small_sources):
    state = state_for(small_sources, max_age=3, total=30)
    rehearsal = state.objective
    for _ in range(12):
        bodies, limit, age = list(rehearsal.lives.bodies), rehearsal.lives.limit.copy(), rehearsal.lives.age.copy()
        train_step(state)
        for slot in range(3):
            fresh = age[slot] + 1 >= limit[slot]
            assert (rehearsal.lives.bodies[slot] is not bodies[slot]) == fresh
            size = float(sum(c[slot].abs().sum() for c in rehearsal.coordinates))
            assert (size == 0) == fresh
            assert int(rehearsal.state.count[slot]) == (0 if fresh else age[slot] + 1)
    assert rehearsal.lives.limit.max() <= 3


def test_new_embodiments_widen_as_training_goes_on(small_sources):
    state = state_for(small_sources, total=12, max_age=1, slots=8, widen_steps=8)
    angles = []
    for _ in range(10):
        axes = np.stack([body.perturbation.action_frame.axes for body in state.objective.lives.bodies])
        angles.append(np.abs(axes - np.eye(3)).max())
        train_step(state)
    assert angles[0] == 0
    assert angles[1] < 0.6 and max(angles[-2:]) > 1


def test_fixed_embodiments_widen_and_stay_the_same_ones(small_sources):
    state = state_for(small_sources, "per_body", total=12, widen_steps=4)
    states = []
    for _ in range(6):
        train_step(state)
        states.append(list(state.objective.drawn.bodies))
    assert all(body.perturbation.action_frame == LinearFrame() for body in states[0])
    for first, wide, last in zip(states[0], states[4], states[5], strict=True):
        assert first.rig == wide.rig and (first.play_episodes == wide.play_episodes).all()
        assert wide is last and wide.perturbation.action_frame != LinearFrame()


@pytest.mark.parametrize("detach", [True, False])
def test_the_action_loss_moves_contexts_of_fixed_bodies_unless_it_is_detached(small_sources, detach):
    action_alone = LossWeights(ttt=0.0, perception=0.0, dynamics=0.0, inverse=0.0)
    state = state_for(small_sources, "per_body", detach=detach, weights=action_alone)
    for _ in range(2):
        train_step(state)
    moved = max(float(t.detach().abs().max()) for t in state.objective.table)
    assert (moved == 0) == detach


BEFORE = json.loads(Path(__file__).with_name("trained_before.json").read_text())


@pytest.mark.parametrize(
    ("scheme", "span"), [("rehearsal", None), ("rehearsal", 5), ("per_body", None), ("global", None)]
)
def test_a_training_is_what_it_was_before(small_sources, scheme, span):
    """Numbers that were written before trainings could be shared, cut into parts or diagnosed, and when the action loss
    always moved the contexts of fixed bodies."""
    state = seeded_state(small_sources, scheme, span=span, detach=scheme != "per_body")
    for before in BEFORE[f"{scheme}-{span}"]:
        numbers = train_step(state)
        state.objective.diagnose()
        assert {name: numbers[name] for name in before} == pytest.approx(before, rel=1e-4)


def test_a_checkpoint_has_what_it_had_before(small_sources, tmp_path):
    payload = torch.load(checkpoint.save(state_for(small_sources), tmp_path), weights_only=True)
    before = {"step", "total_steps", "model", "optimizer", "objective", "torch_rng"}
    assert payload.keys() == before | {"about"}
    slots = {"coordinates", "first", "second", "count", "age", "limit", "bodies", "rng", "step"}
    assert payload["objective"].keys() == slots
    older = {name: payload[name] for name in before}
    torch.save(older, tmp_path / "older.pt")
    checkpoint.restore(state_for(small_sources), tmp_path / "older.pt")


@pytest.mark.parametrize("scheme", ["rehearsal", "per_body", "global"])
def test_training_resumes_bit_for_bit(small_sources, tmp_path, scheme):
    straight = state_for(small_sources, scheme)
    config = LoopConfig(log_every=2, save_every=3, tensorboard=False)
    torch.manual_seed(3)
    assert run_training(straight, tmp_path / "straight", config)

    torch.manual_seed(3)
    first = state_for(small_sources, scheme)
    torch.manual_seed(3)
    for _ in range(3):
        train_step(first)
    checkpoint.save(first, tmp_path / "resumed")
    torch.manual_seed(99)  # whatever happened in between
    second = state_for(small_sources, scheme)
    assert run_training(second, tmp_path / "resumed", config) and second.step == 6
    for name, tensor in unique_tensors(straight.model).items():
        assert torch.equal(tensor, unique_tensors(second.model)[name]), name
    if scheme == "rehearsal":
        for a, b in zip(straight.objective.coordinates, second.objective.coordinates, strict=True):
            assert torch.equal(a, b)


def test_checkpoints_of_another_training_are_refused(small_sources, tmp_path):
    path = checkpoint.save(state_for(small_sources), tmp_path)
    with pytest.raises(ValueError, match="of 6 steps, not 8"):
        checkpoint.restore(state_for(small_sources, total=8), path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="damaged"):
        checkpoint.restore(state_for(small_sources), path)


def test_demonstrations_serve_as_play_where_there_is_none(tmp_path):
    """LeRobot's own data sets know no play: their transitions are as good."""
    rng = np.random.default_rng(0)
    with LeRobotWriter(tmp_path / "data") as writer:
        for length in (8, 11, HORIZON):
            numbers = {name: rng.normal(size=(length, 4)).astype(np.float32) for name in ("state", "action")}
            images = {"scene": np.zeros((length, 16, 16, 3), np.uint8)}
            writer.add_episode(Episode(images, **numbers, task="reach the red cube"))
    cache = EpisodeCache.build(LeRobotReader(tmp_path / "data"), tmp_path / "cache")
    sources = make_sources(cache)
    body = sources.embodiment(0, EmbodimentPerturbation())
    np.testing.assert_array_equal(body.frames[body.play], cache.transitions(HORIZON))
    np.testing.assert_array_equal(np.sort(body.frames[body.demonstrations]), np.arange(cache.num_frames))
    np.testing.assert_allclose(body.stats.action.mean, cache.column("action").mean(0), atol=1e-6)
    drawn = sources.sample(rng)
    assert 2 <= len(drawn.play_episodes) <= 3
    assert sources.play_batch([body, drawn], 5, rng).next_features is not None


def test_slots_live_for_an_eighth_of_the_greatest_age_at_least(small_sources):
    limits = state_for(small_sources, slots=64, max_age=80).objective.lives.limit
    assert limits.min() >= 10 and limits.max() <= 80
    assert limits.min() < 20 and limits.max() > 60


def test_slots_move_by_the_optimiser_of_the_settings(small_sources):
    settings = {"learning_rate": 0.03, "betas": (0.5, 0.6), "clip_norm": 0.2, "decay_steps": 2.0}
    rehearsal = state_for(small_sources, max_age=50, **settings).objective
    adam = FastAdam(0.03, (0.5, 0.6), clip_norm=0.2, decay_steps=2.0)
    expected, state = rehearsal.coordinates, rehearsal.state
    for _ in range(3):
        rehearsal.losses(*rehearsal.draw(1)).total.backward()
        gradients = [3 * leaf.grad for leaf in rehearsal._leaves]  # the loss is the mean of 3 slots
        expected, state = adam.step(expected, gradients, state)
        rehearsal.after_backward()
    torch.testing.assert_close(rehearsal.coordinates, expected)
