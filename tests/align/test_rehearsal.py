"""Rehearsal and its training loop: what moves what, slots, and exact resumption."""

import json

import numpy as np
import pytest
import torch

from selfalign.align.optim import FastAdam
from selfalign.align.rehearsal import RehearsalConfig, make_objective
from selfalign.data.cache import EpisodeCache
from selfalign.data.episodes import Episode
from selfalign.data.lerobot import LeRobotReader, LeRobotWriter
from selfalign.data.perturb import EmbodimentPerturbation, LinearFrame
from selfalign.data.virtual import FrameFeatures, ModelShape, VirtualSources
from selfalign.model.policy import VLA, VLAConfig
from selfalign.model.streams import StreamConfig
from selfalign.model.tokenizer import ByteTokenizer
from selfalign.model.ttt import TTTConfig
from selfalign.model.vision import KeypointTowerConfig
from selfalign.model.weights import unique_tensors
from selfalign.train import checkpoint
from selfalign.train.loop import LoopConfig, fit
from selfalign.train.step import NonFiniteLoss, OptimConfig, make_state, train_step

HORIZON = 4
HEADS = {"num_heads": 2, "num_kv_heads": 1, "head_dim": 8}


def tiny_model(span: int | None = None) -> VLA:
    torch.manual_seed(0)
    expert = StreamConfig(width=16, mlp_dim=16, depth=2, **HEADS)
    tower = KeypointTowerConfig(image_size=16, channels=(8, 8, 8), named=2, free=0, grid=1, feature_dim=2)
    config = VLAConfig(
        vlm=expert,
        action=expert,
        alignment=expert,
        ttt=TTTConfig(2, 8, span=span),
        vision=tower,
        action_horizon=HORIZON,
    )
    model = VLA(config)
    model.vision.requires_grad_(False)
    return model


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> EpisodeCache:
    folder = tmp_path_factory.mktemp("sources")
    rng = np.random.default_rng(0)
    with LeRobotWriter(folder / "data", fps=20.0, embodiments=[{"name": "a"}, {"name": "b"}]) as writer:
        for i in range(12):
            length = int(rng.integers(8, 14))
            writer.add_episode(
                Episode(
                    images={"scene": rng.integers(0, 255, (length, 16, 16, 3), dtype=np.uint8)},
                    state=rng.normal(size=(length, 4)).astype(np.float32),
                    action=rng.normal(size=(length, 4)).astype(np.float32),
                    task="" if i % 3 else "reach the red cube",
                    embodiment_index=i % 2,
                    is_play=bool(i % 3),
                )
            )
    return EpisodeCache.build(LeRobotReader(folder / "data"), folder / "cache")


def draw(rng: np.random.Generator, rig, width: float) -> EmbodimentPerturbation:
    return EmbodimentPerturbation(
        LinearFrame.sample(rng, width=width), LinearFrame.sample(rng, offset=0.1, width=width)
    )


@pytest.fixture
def sources(cache) -> VirtualSources:
    model = tiny_model()
    rng = np.random.default_rng(1)
    tokens = rng.normal(size=(cache.num_frames, model.vision.num_tokens, model.vision.token_dim)).astype(np.float16)
    following = rng.normal(size=(cache.num_frames, *model.feature_mean.shape)).astype(np.float32)
    features = FrameFeatures({"scene": tokens}, following)
    return VirtualSources(cache, features, ByteTokenizer(48), ModelShape(HORIZON, 8, 8), draw)


def state_for(sources, scheme="rehearsal", total=6, span=None, **changes):
    model = tiny_model(span)
    settings = {"slots": 3, "play_per_slot": 4, "demonstrations_per_slot": 2, "max_age": 3, "bodies": 5}
    config = RehearsalConfig(scheme=scheme, **{**settings, **changes})
    objective = make_objective(model, sources, config)
    return make_state(model, objective, OptimConfig(warmup_steps=2), total)


def test_a_batch_is_the_recording_in_the_bodys_own_frame(sources, cache):
    body = sources.sample(np.random.default_rng(0), rig=1)
    batch = sources.play_batch([body], 6, np.random.default_rng(5))
    rows = np.random.default_rng(5).choice(body.play, size=6)
    frames = body.frames[rows]
    raw = body.perturbation.action_frame.apply(cache.column("action"))
    expected = body.stats.normalize_action(np.stack([raw[f : f + HORIZON] for f in frames]))
    np.testing.assert_allclose(batch.actions.values[..., :4].numpy(), expected, rtol=1e-4, atol=1e-5)
    assert batch.actions.values[..., 4:].abs().max() == 0 and not batch.actions.dim_mask[:, 4:].any()
    np.testing.assert_array_equal(batch.next_features, sources.features.next_features[frames + HORIZON])
    episodes = cache.episode_of_frame
    assert (episodes[frames] == episodes[frames + HORIZON]).all(), "no transition crosses an episode"
    assert batch.observation.tokens.shape == (6, 1), "play has no task words"


def test_chunks_beyond_the_end_are_masked(sources, cache):
    body = sources.sample(np.random.default_rng(0), rig=0)
    batch = sources.demonstration_batch([body], 64, np.random.default_rng(2))
    rows = np.random.default_rng(2).choice(body.demonstrations, size=64, p=body.demonstration_odds)
    inside = body.last[rows] - rows + 1
    np.testing.assert_array_equal(batch.actions.step_mask.sum(1), np.minimum(inside, HORIZON))


@pytest.mark.parametrize("span", [None, 5])
def test_each_slot_moves_as_if_it_were_aligned_alone(sources, span):
    """One training step moves a slot's context by the step that `align`'s optimiser takes on that slot's play alone."""
    state = state_for(sources, max_age=50, span=span)
    rehearsal = state.objective
    rehearsal.losses().total.backward()  # draws a first batch; thrown away so that W0 and slots differ
    rehearsal.after_backward()
    state.model.zero_grad()

    snapshot = json.loads(json.dumps(rehearsal.rng.bit_generator.state))
    noise_state = torch.get_rng_state()
    before, moments = rehearsal.coordinates, rehearsal.state
    rehearsal.losses().total.backward()
    rehearsal.after_backward()

    rehearsal.rng.bit_generator.state = snapshot
    torch.set_rng_state(noise_state)
    play = sources.play_batch(rehearsal.bodies, 4, rehearsal.rng)
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


def test_the_action_loss_reads_contexts_but_never_moves_them_or_the_prior(sources):
    state = state_for(sources)
    rehearsal = state.objective
    losses = rehearsal.losses()
    losses.action.backward()
    assert all(c.grad is None for c in rehearsal._leaves)
    assert all(layer.W1.grad is None and layer.b1.grad is None for layer in state.model.ttt_layers)
    assert state.model.ttt_layers[0].theta_q.weight.grad.abs().max() > 0


def test_the_prior_learns_through_the_alignment_losses(sources):
    state = state_for(sources)
    before = state.model.prior().clone()
    train_step(state)
    moved = state.model.prior().distance(before)
    assert moved > 0


def test_a_slot_that_reaches_its_age_starts_again_from_the_prior(sources):
    state = state_for(sources, max_age=3, total=30)
    rehearsal = state.objective
    for _ in range(12):
        bodies, limit, age = list(rehearsal.bodies), rehearsal.limit.copy(), rehearsal.age.copy()
        train_step(state)
        for slot in range(3):
            fresh = age[slot] + 1 >= limit[slot]
            assert (rehearsal.bodies[slot] is not bodies[slot]) == fresh
            size = float(sum(c[slot].abs().sum() for c in rehearsal.coordinates))
            assert (size == 0) == fresh
            assert int(rehearsal.state.count[slot]) == (0 if fresh else age[slot] + 1)
    assert rehearsal.limit.max() <= 3


def test_new_embodiments_widen_as_training_goes_on(sources):
    state = state_for(sources, total=12, max_age=1, slots=8, widen_steps=8)
    angles = []
    for _ in range(10):
        axes = np.stack([body.perturbation.action_frame.axes for body in state.objective.bodies])
        angles.append(np.abs(axes - np.eye(3)).max())
        train_step(state)
    assert angles[0] == 0
    assert angles[1] < 0.6 and max(angles[-2:]) > 1


def test_fixed_embodiments_widen_and_stay_the_same_ones(sources):
    state = state_for(sources, "per_body", total=12, widen_steps=4)
    states = []
    for _ in range(6):
        train_step(state)
        states.append(list(state.objective.bodies))
    assert all(body.perturbation.action_frame == LinearFrame() for body in states[0])
    for first, wide, last in zip(states[0], states[4], states[5], strict=True):
        assert first.rig == wide.rig and (first.play_episodes == wide.play_episodes).all()
        assert wide is last and wide.perturbation.action_frame != LinearFrame()


@pytest.mark.parametrize("scheme", ["rehearsal", "per_body", "global"])
def test_training_resumes_bit_for_bit(sources, tmp_path, scheme):
    straight = state_for(sources, scheme)
    config = LoopConfig(log_every=2, save_every=3, tensorboard=False)
    torch.manual_seed(3)
    assert fit(straight, tmp_path / "straight", config)

    torch.manual_seed(3)
    first = state_for(sources, scheme)
    torch.manual_seed(3)
    for _ in range(3):
        train_step(first)
    checkpoint.save(first, tmp_path / "resumed")
    torch.manual_seed(99)  # whatever happened in between
    second = state_for(sources, scheme)
    assert fit(second, tmp_path / "resumed", config) and second.step == 6
    for name, tensor in unique_tensors(straight.model).items():
        assert torch.equal(tensor, unique_tensors(second.model)[name]), name
    if scheme == "rehearsal":
        for a, b in zip(straight.objective.coordinates, second.objective.coordinates, strict=True):
            assert torch.equal(a, b)


def test_a_loss_that_is_not_finite_stops_before_the_update(sources):
    state = state_for(sources)
    with torch.no_grad():
        state.model.action_out.bias[0] = torch.nan
    before = {name: t.clone() for name, t in unique_tensors(state.model).items()}
    with pytest.raises(NonFiniteLoss, match="step 0"):
        train_step(state)
    for name, tensor in unique_tensors(state.model).items():
        assert torch.equal(tensor.nan_to_num(7), before[name].nan_to_num(7)), name


def test_checkpoints_of_another_training_are_refused(sources, tmp_path):
    path = checkpoint.save(state_for(sources), tmp_path)
    with pytest.raises(ValueError, match="of 6 steps, not 8"):
        checkpoint.restore(state_for(sources, total=8), path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="damaged"):
        checkpoint.restore(state_for(sources), path)


def test_old_checkpoints_are_pruned(sources, tmp_path):
    state = state_for(sources)
    for step in (1, 2, 3):
        state.step = step
        checkpoint.save(state, tmp_path, keep=2)
    assert [p.name for p in checkpoint.available(tmp_path)] == ["step-0000002.pt", "step-0000003.pt"]


def test_demonstrations_serve_as_play_where_there_is_none(tmp_path):
    """LeRobot's own data sets know no play: their transitions are as good."""
    rng = np.random.default_rng(0)
    with LeRobotWriter(tmp_path / "data") as writer:
        for length in (8, 11, HORIZON):
            numbers = {name: rng.normal(size=(length, 4)).astype(np.float32) for name in ("state", "action")}
            images = {"scene": np.zeros((length, 16, 16, 3), np.uint8)}
            writer.add_episode(Episode(images, **numbers, task="reach the red cube"))
    cache = EpisodeCache.build(LeRobotReader(tmp_path / "data"), tmp_path / "cache")
    model = tiny_model()
    tokens = np.zeros((cache.num_frames, model.vision.num_tokens, model.vision.token_dim), np.float16)
    features = FrameFeatures({"scene": tokens}, np.zeros((cache.num_frames, *model.feature_mean.shape), np.float32))
    sources = VirtualSources(cache, features, ByteTokenizer(48), ModelShape(HORIZON, 8, 8), draw)
    body = sources.embodiment(0, EmbodimentPerturbation())
    starts = np.flatnonzero(np.isin(np.arange(cache.num_frames), cache.transitions(HORIZON)))
    np.testing.assert_array_equal(body.frames[body.play], starts)
    np.testing.assert_array_equal(np.sort(body.frames[body.demonstrations]), np.arange(cache.num_frames))
    action = np.concatenate([np.asarray(cache.column("action"))])
    np.testing.assert_allclose(body.stats.action.mean, action.mean(0), atol=1e-6)
    assert sources.play_batch([body], 5, np.random.default_rng(0)).next_features is not None
