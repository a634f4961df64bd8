"""`Policy` against the steps done by hand, and the messages that users get."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import selfalign as sa
from align.factory import HORIZON, make_episode, make_play, raw_observation, small_policy
from selfalign.checkpoint import load, save_checkpoint
from selfalign.data.normalize import NormStats
from selfalign.model.context import EmbodimentContext
from selfalign.model.losses import LossWeights
from selfalign.model.precision import set_precision
from selfalign.policy import Policy
from selfalign.settings import AlignSettings
from selfalign.types import Observation


@pytest.fixture
def policy() -> Policy:
    return small_policy()


def context_for(policy: Policy, stats: NormStats, size: float = 1.0, seed: int = 0) -> EmbodimentContext:
    generator = torch.Generator().manual_seed(seed)
    context = policy.model.prior().perturbed(size, generator=generator)
    return context.with_info(embodiment="toy", fingerprint=policy.fingerprint(), norm_stats=stats.to_dict())


def test_contexts_that_were_fitted_and_read_act_together_wherever_the_model_is(policy, tmp_path, monkeypatch):
    """`meta` stands for a GPU: it does not mix with the CPU either."""
    context = context_for(policy, make_play().stats())
    path, name = context.save(tmp_path / "a.safetensors"), policy.fingerprint()
    monkeypatch.setattr(Policy, "fingerprint", lambda _: name)  # weights without values have none
    policy.model.to("meta")
    read, fitted = policy.load_context(path), context.to("meta")
    assert {t.device.type for t in read.tensors} == {"meta"}
    given, merged = policy._contexts([fitted, EmbodimentContext.load(path), read])
    assert {t.device.type for one in (*given, merged) for t in one.tensors} == {"meta"} and merged.batched


# ---- acting --------------------------------------------------------------------------------------------------------


def test_act_is_the_model_between_normalisation_and_its_inverse(policy):
    play, episode = make_play(), make_episode(50)
    state, action = play.state(), play.action()
    context, noise = context_for(policy, play.stats()), torch.randn(HORIZON, 5)

    tokens = torch.tensor([[1, *(byte + 2 for byte in b" go left")]])
    normalised = np.pad((episode.state[2] - state.mean(0)) / state.std(0), (0, 3)).astype(np.float32)
    by_hand = Observation(
        images={"scene": torch.from_numpy(episode.images["scene"][2]).permute(2, 0, 1)[None] / 127.5 - 1},
        image_masks={"scene": torch.tensor([True])},
        state=torch.from_numpy(normalised)[None],
        tokens=tokens,
        token_mask=torch.ones_like(tokens, dtype=torch.bool),
    )
    raw = policy.model.sample_actions(by_hand, context, noise=noise[None], num_steps=4)[0, :, :3].numpy()
    actions = policy.act(raw_observation(episode, 2, "go left"), context, noise=noise, num_steps=4)
    assert actions.shape == (HORIZON, 3) and actions.dtype == np.float32
    np.testing.assert_allclose(actions, raw * action.std(0) + action.mean(0), rtol=1e-4, atol=1e-5)


class TellingTokenizer:
    """Of pi0.5's kind: prompts tell the state. It keeps what it was given."""

    reads_state = True

    def encode(self, prompts, states=None):
        self.prompts, self.states = prompts, states
        return torch.ones(len(prompts), 1, dtype=torch.long), torch.ones(len(prompts), 1, dtype=torch.bool)


def test_a_prompt_that_tells_the_state_gets_it_normalised_and_not_padded(policy):
    play, episode, tokenizer = make_play(), make_episode(50), TellingTokenizer()
    policy = dataclasses.replace(policy, tokenizer=tokenizer)
    policy.observation(raw_observation(episode, 2, "go"), play.stats())
    expected = (episode.state[2] - play.state().mean(0)) / play.state().std(0)
    assert tokenizer.prompts == ["go"]
    np.testing.assert_allclose(tokenizer.states[0], expected, rtol=1e-4, atol=1e-5)
    policy.transitions(play, play.stats())
    assert tokenizer.states is None, "alignment predicts the state, so its prompt must not tell it"


def test_a_batch_acts_as_its_observations_one_by_one(policy):
    stats, episode = make_play().stats(), make_episode(50, length=3)
    tasks = ["reach the red cube", "go", "lift"]
    noise = torch.randn(3, HORIZON, 5)
    context = context_for(policy, stats)
    together = policy.act({**raw_observation(episode, None), "task": tasks}, context, noise=noise)
    assert together.shape == (3, HORIZON, 3)
    for i, task in enumerate(tasks):
        alone = policy.act(raw_observation(episode, i, task), context, noise=noise[i])
        np.testing.assert_allclose(together[i], alone, rtol=1e-4, atol=1e-5)


def test_robots_with_contexts_and_statistics_of_their_own_share_a_batch(policy):
    episode, noise = make_episode(50, length=2), torch.randn(2, HORIZON, 5)
    slow, fast = make_play().stats(), make_play(scale=20.0).stats()
    contexts = [context_for(policy, slow, seed=1), context_for(policy, fast, seed=2)]
    together = policy.act(raw_observation(episode, None), contexts, noise=noise)
    for i in range(2):
        alone = policy.act(raw_observation(episode, i), contexts[i], noise=noise[i])
        np.testing.assert_allclose(together[i], alone, rtol=1e-4, atol=1e-4)
    assert np.abs(together[1]).mean() > 5 * np.abs(together[0]).mean()
    with pytest.raises(ValueError, match="3 statistics for a batch of 2 observations"):
        policy.act(raw_observation(episode, None), [*contexts, contexts[0]])
    with pytest.raises(ValueError, match="2 contexts for a batch of 1 observations"):
        policy.act(raw_observation(episode, 0), EmbodimentContext.stack(contexts), stats=slow)


def test_without_a_context_the_prior_acts_with_the_given_statistics(policy):
    stats, noise = make_play().stats(), torch.randn(HORIZON, 5)
    raw = raw_observation(make_episode(50))
    prior = policy.model.prior().detach().with_info(norm_stats=stats.to_dict())
    np.testing.assert_array_equal(policy.act(raw, stats=stats, noise=noise), policy.act(raw, prior, noise=noise))
    with pytest.raises(ValueError, match="acting needs the robot's normalisation statistics"):
        policy.act(raw)
    with pytest.raises(ValueError, match="carries no normalisation statistics"):
        policy.act(raw, policy.model.prior().detach())


def test_images_of_other_sizes_are_resized_with_padding(policy):
    stats = make_play().stats()
    tall = np.random.default_rng(0).integers(0, 256, (64, 32, 3), dtype=np.uint8)
    raw = {**raw_observation(make_episode(50)), "observation.images.scene": tall}
    small = np.asarray(Image.fromarray(tall).resize((8, 16), Image.Resampling.BILINEAR))
    pixels = policy.observation(raw, stats).images["scene"][0]
    assert pixels.shape == (3, 16, 16)
    torch.testing.assert_close(pixels[:, :, 4:12], torch.from_numpy(small.copy()).permute(2, 0, 1) / 127.5 - 1)
    assert (pixels[:, :, :4] == -1).all() and (pixels[:, :, 12:] == -1).all()


def test_a_camera_that_the_robot_lacks_is_masked(policy):
    two = small_policy(cameras=("scene", "wrist"))
    stats, episode = make_play().stats(), make_episode(50)
    observation = two.observation(raw_observation(episode), stats)
    assert {camera: mask.item() for camera, mask in observation.image_masks.items()} == {"scene": True, "wrist": False}
    assert np.isfinite(two.act(raw_observation(episode), stats=stats)).all()
    transitions = two.transitions([episode], stats)
    assert transitions.observation.image_masks["scene"].all() and not transitions.observation.image_masks["wrist"].any()


def without(raw: dict, key: str) -> dict:
    return {k: v for k, v in raw.items() if k != key}


IMAGE, STATE = "observation.images.scene", "observation.state"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: without(raw, STATE), "has no 'observation.state'; it has observation.images.scene, task"),
        (lambda raw: without(raw, "task"), "has no 'task'"),
        (lambda raw: without(raw, IMAGE), "has no image; the model reads observation.images.scene"),
        (lambda raw: {**raw, "observation.images.scen": raw[IMAGE]}, "unknown observation.images.scen; the model"),
        (lambda raw: {**raw, IMAGE: raw[IMAGE] / 255.0}, r"scene must be uint8 \[H, W, 3\], got float64 \[16, 16, 3\]"),
        (
            lambda raw: {**raw, IMAGE: raw[IMAGE].transpose(2, 0, 1)},
            r"must be uint8 \[H, W, 3\], got uint8 \[3, 16, 16\]",
        ),
        (lambda raw: {**raw, IMAGE: raw[IMAGE][None]}, r"must be uint8 \[H, W, 3\], got uint8 \[1, 16, 16, 3\]"),
        (
            lambda raw: {**raw, STATE: raw[STATE][:2]},
            r"observation.state has 2 dimensions, the robot's statistics have 3\. Cut padded ones with NormStats",
        ),
        (
            lambda raw: {**raw, STATE: np.arange(3)},
            r"observation.state must be float \[S\] or \[B, S\], got int64 \[3\]",
        ),
        (lambda raw: {**raw, STATE: np.array([0, np.nan, 0])}, r"observation.state is NaN or infinite at index \[1\]"),
        (lambda raw: {**raw, "task": ["a", "b"]}, "task must be one string, or a string for each of 1 observations"),
        (lambda raw: {**raw, "task": None}, "task must be one string, .*; got None"),
        (lambda raw: {**raw, "task": 5}, "task must be one string, .*; got 5"),
        (lambda raw: {**raw, "task": b"reach"}, "task must be one string, .*; got b'reach'"),
        (lambda raw: {**raw, "task": "x" * 30}, "needs 32 tokens, the model reads 24"),
    ],
)
def test_what_cannot_be_read_is_named(policy, change, message):
    raw = raw_observation(make_episode(50))
    with pytest.raises(ValueError, match=message):
        policy.act(change(raw), stats=make_play().stats())


def test_noise_of_another_shape_is_refused(policy):
    with pytest.raises(ValueError, match=r"noise must have shape \[1, 4, 5\], got \[1, 4, 3\]"):
        policy.act(raw_observation(make_episode(50)), stats=make_play().stats(), noise=torch.zeros(4, 3))


def test_a_context_of_another_model_is_refused(policy, tmp_path):
    stats = make_play().stats()
    foreign = context_for(small_policy(1), stats)
    with pytest.raises(ValueError, match="a context means nothing to another model"):
        policy.act(raw_observation(make_episode(50)), foreign)
    with pytest.raises(ValueError, match="a context means nothing to another model"):
        policy.load_context(foreign.save(tmp_path / "foreign.safetensors"))
    cut = context_for(policy, stats)
    cut = dataclasses.replace(cut, W1=cut.W1[:1], b1=cut.b1[:1])
    with pytest.raises(ValueError, match="the context has tensors of shapes"):
        policy.act(raw_observation(make_episode(50)), cut)


def test_the_fingerprint_follows_every_change_of_a_weight(policy):
    first = policy.fingerprint()
    assert first == policy.model.fingerprint() == policy.fingerprint()
    with torch.no_grad():
        policy.model.action_out.bias[0] += 1e-3
    assert policy.fingerprint() == policy.model.fingerprint() != first


def test_nan_actions_never_reach_the_robot(policy):
    with torch.no_grad():
        policy.model.action_out.bias[0] = torch.nan
    with pytest.raises(ValueError, match="gave NaN or infinite actions"):
        policy.act(raw_observation(make_episode(50)), stats=make_play().stats())


# ---- transitions ---------------------------------------------------------------------------------------------------


def test_transitions_pair_each_frame_with_its_chunk_and_what_came_after(policy):
    play = make_play(count=2, length=7)
    stats, count = play.stats(), 7 - HORIZON
    batch = policy.transitions(play, stats)
    assert batch.observation.batch_size == 2 * count
    for i in range(2 * count):
        episode, t = play.episodes[i // count], i % count
        state = (episode.state[t] - play.state().mean(0)) / play.state().std(0)
        chunk = (episode.action[t : t + HORIZON] - play.action().mean(0)) / play.action().std(0)
        np.testing.assert_allclose(batch.observation.state[i, :3], state, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(batch.actions.values[i, :, :3], chunk, rtol=1e-4, atol=1e-5)
        frames = torch.from_numpy(episode.images["scene"][[t, t + HORIZON]]).permute(0, 3, 1, 2) / 127.5 - 1
        with torch.no_grad():
            tokens = policy.model.vision(frames)
            following = policy.model.next_features({"scene": tokens[1:]})
        torch.testing.assert_close(batch.observation.image_features["scene"][i], tokens[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(batch.next_features[i : i + 1], following, rtol=1e-4, atol=1e-5)
    assert not batch.observation.state[:, 3:].any() and not batch.actions.values[..., 3:].any()
    assert batch.observation.state_mask.sum(1).tolist() == [3] * 2 * count
    assert batch.actions.loss_mask().sum((1, 2)).tolist() == [3 * HORIZON] * 2 * count


def test_transitions_hold_neither_state_nor_task_in_the_prompt(policy):
    play = make_play(count=1, task="reach the red cube")
    batch = policy.transitions(play, play.stats())
    assert batch.observation.tokens.tolist() == [[1]] * batch.observation.batch_size


def test_a_stride_thins_out_transitions(policy):
    play = make_play(count=2, length=11)
    every, third = (policy.transitions(play, play.stats(), stride=s) for s in (1, 3))
    rows = [0, 3, 6, 7, 10, 13]
    torch.testing.assert_close(third.observation.state, every.observation.state[rows])
    torch.testing.assert_close(third.next_features, every.next_features[rows], rtol=1e-4, atol=1e-5)


# ---- checkpoints ---------------------------------------------------------------------------------------------------


def test_a_policy_in_bf16_is_not_written_as_what_would_not_load(policy, tmp_path):
    set_precision(policy.model, "bf16")
    with pytest.raises(
        ValueError, match=r"written in float32, and this model has torch\.bfloat16: bring it back first"
    ):
        save_checkpoint(policy, tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()
    set_precision(policy.model, "float32")
    path = save_checkpoint(policy, tmp_path / "checkpoint")
    assert load(path).fingerprint() == policy.fingerprint()


def test_a_checkpoint_comes_back_as_it_was(policy, tmp_path):
    settings = AlignSettings(0.02, (0.8, 0.95), 32, 50, None, weights=LossWeights(perception=0.5))
    saved = Policy.from_model(policy.model, settings)
    loaded = sa.load(save_checkpoint(saved, tmp_path / "tiny"))
    assert loaded.settings == settings
    assert loaded.fingerprint() == saved.fingerprint()
    raw, noise, stats = raw_observation(make_episode(50)), torch.randn(HORIZON, 5), make_play().stats()
    np.testing.assert_array_equal(loaded.act(raw, stats=stats, noise=noise), saved.act(raw, stats=stats, noise=noise))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "settings.json"])
def test_a_missing_file_is_named(policy, tmp_path, name):
    save_checkpoint(policy, tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"not a checkpoint: it has no {name}"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match="no checkpoint directory at"):
        load(tmp_path / "nothing")


def test_files_of_two_checkpoints_do_not_load(policy, tmp_path):
    save_checkpoint(policy, tmp_path / "a")
    save_checkpoint(small_policy(1), tmp_path / "b")
    shutil.copy(tmp_path / "b" / "model.safetensors", tmp_path / "a")
    with pytest.raises(ValueError, match="do not belong together"):
        load(tmp_path / "a")


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s | {"format": "selfalign-settings-9"},
        lambda s: s | {"align": s["align"] | {"speed": 1}},
        lambda s: s | {"align": {k: v for k, v in s["align"].items() if k != "betas"}},
        lambda s: s | {"align": s["align"] | {"learning_rate": -1.0}},
        lambda s: {k: v for k, v in s.items() if k != "fingerprint"},
    ],
)
def test_damaged_settings_do_not_load(policy, tmp_path, change):
    save_checkpoint(policy, tmp_path)
    path = tmp_path / "settings.json"
    changed = change(json.loads(path.read_text()))
    path.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match=r"settings\.json differs from what was written"):
        load(tmp_path)
    path.write_text(json.dumps({k: v for k, v in changed.items() if k != "sums"}))
    with pytest.raises(ValueError, match=r"settings\.json is (damaged or )?of another version"):
        load(tmp_path)


def test_a_full_disk_leaves_the_old_settings(policy, tmp_path, monkeypatch):
    save_checkpoint(policy, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full)
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(small_policy(1), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_public_face_is_small_and_whole():
    assert len(sa.__all__) <= 12 and all(hasattr(sa, name) for name in sa.__all__)
