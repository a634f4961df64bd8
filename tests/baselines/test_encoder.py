"""The encoder: it learns to tell bodies apart, its file is checked, and the method gives what it says."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from align.factory import make_play, small_policy
from selfalign.baselines import fit
from selfalign.baselines.encoder import PlayEncoder, TrainedEncoder, encoder_inputs, moved_prior
from selfalign.baselines.encoder_run import EncoderRun, run
from selfalign.baselines.encoder_training import BodyBatch, EncoderTraining, Recordings, train_encoder
from selfalign.baselines.samples import FlowSamples
from selfalign.checkpoint import save_checkpoint
from selfalign.data.fake import write_fake
from selfalign.data.lerobot import LeRobotReader
from selfalign.data.perturb import EmbodimentPerturbation, LinearFrame
from selfalign.data.play import Play

SMALL = EncoderTraining(rank=4, width=16, steps=3, transitions=5, bodies=2, demonstrations=3, holdout=0.0)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """(policy, folder of a data set with five rigs, its recordings as the policy sees them)."""
    policy, folder = small_policy(), tmp_path_factory.mktemp("recorded")
    data = write_fake(folder / "data", rigs=5, episodes=3, image_size=16)
    return policy, data, Recordings.open(policy, (str(data),), folder / "features")


def random_encoder(inputs: int = 7, size: int = 20) -> PlayEncoder:
    torch.manual_seed(0)
    network = PlayEncoder(inputs, 16, 4, size)
    torch.nn.init.normal_(network.decode.weight)
    return network.requires_grad_(False)


def test_an_untrained_one_says_w0_and_the_order_of_transitions_means_nothing():
    assert torch.equal(PlayEncoder(7, 16, 4, 20)(torch.randn(9, 7)), torch.zeros(20))
    network, inputs = random_encoder(), torch.randn(9, 7)
    torch.testing.assert_close(network(inputs), network(inputs.flip(0)))
    torch.testing.assert_close(network(torch.stack([inputs, inputs.flip(0)]))[1], network(inputs))
    assert not torch.allclose(network(inputs), network(inputs + 1))


def test_differences_become_contexts():
    model = small_policy().model
    w0 = model.prior().embedding().detach()
    moved = torch.randn(3, len(w0), requires_grad=True)
    contexts = moved_prior(model, moved)
    assert contexts.batched and not moved_prior(model, moved[0]).batched
    torch.testing.assert_close(contexts.embedding() - w0, moved, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(moved_prior(model, moved[1]).embedding(), contexts.embedding()[1])
    (gradient,) = torch.autograd.grad(contexts.embedding().sum(), moved)
    assert torch.equal(gradient, torch.ones_like(moved))


def test_every_body_acts_under_the_context_of_its_own_play(recorded):
    policy, _, recordings = recorded
    learned, _ = recordings.split(0.0, 0, 1.0)
    batch = BodyBatch.draw(policy, learned, SMALL, torch.Generator().manual_seed(1))
    network = random_encoder(batch.play.shape[-1], len(policy.model.prior().embedding()))
    losses = []
    for body in range(2):
        rows = slice(3 * body, 3 * body + 3)
        context = moved_prior(policy.model, network(batch.play[body]))
        shown, noise, time = batch.shown.batch[rows], batch.shown.noise[rows], batch.shown.time[rows]
        losses.append(policy.model.losses(shown, context, noise=noise, time=time, parts=("action",)).action)
    torch.testing.assert_close(batch.loss(policy, network), torch.stack(losses).mean())
    under_prior = policy.model.losses(
        batch.shown.batch, noise=batch.shown.noise, time=batch.shown.time, parts=("action",)
    )
    torch.testing.assert_close(batch.loss(policy, None), under_prior.action)


def test_recorded_bodies_read_as_new_ones_do(recorded):
    """What is drawn from a rig's recordings is what `Policy.transitions` makes of the same play."""
    policy, data, recordings = recorded
    learned, _ = recordings.split(0.0, 0, 1.0)
    body = learned.embodiment(1, EmbodimentPerturbation())
    rows = np.random.default_rng(0).choice(body.play, size=40)
    drawn = encoder_inputs(policy, learned.play_batch([body], 40, np.random.default_rng(0)))
    episodes = list(LeRobotReader(data).episodes())
    play = Play.from_episodes([e for e in episodes if e.embodiment_index == 1 and e.is_play])
    inputs = encoder_inputs(policy, policy.transitions(policy.repack_play(play), policy.play_stats(play)))
    assert len(inputs) == len(body.play)
    # The tower's tokens are kept in half precision.
    torch.testing.assert_close(drawn, inputs[np.searchsorted(body.play, rows)], rtol=0.0, atol=5e-3)


def mirrored(rng: np.random.Generator, rig, width: float) -> EmbodimentPerturbation:
    """A body whose actions count forwards or backwards."""
    sign = rng.choice([-1.0, 1.0])
    return EmbodimentPerturbation(action_frame=LinearFrame.build(np.eye(3), flips=(sign, sign, sign)))


def test_it_learns_to_tell_bodies_apart_and_the_policy_stays(recorded):
    policy, _, recordings = recorded
    sources = partial(recordings.sources.func, *recordings.sources.args[:-1], mirrored)
    before = policy.fingerprint(), policy.model.prior().embedding().detach().clone()
    config = EncoderTraining(
        rank=8, width=32, steps=200, learning_rate=1e-2, bodies=8, transitions=24, demonstrations=16, holdout=0.2
    )
    trained = train_encoder(policy, Recordings(recordings.cache, sources), config)
    told = trained.training["action_loss"]
    assert told["encoder"] < 0.9 * told["prior"]
    assert trained.training["rigs"] == {"learned": 4, "held_out": 1} and trained.fingerprint == before[0]
    assert policy.fingerprint() == before[0] and torch.equal(policy.model.prior().embedding(), before[1])
    generator, bodies = torch.Generator().manual_seed(5), sources()
    batches = [BodyBatch.draw(policy, bodies, config, generator) for _ in range(6)]
    with torch.no_grad():
        own = sum(batch.loss(policy, trained.network) for batch in batches)
        others = sum(BodyBatch(b.play.roll(1, 0), b.shown).loss(policy, trained.network) for b in batches)
    assert own < 0.98 * others, "another body's context, of the other sign half of the time, is worse"


def test_the_method_gives_what_the_encoder_says(recorded, tmp_path):
    policy, data, recordings = recorded
    play = make_play(3, 8)
    trained = train_encoder(policy, recordings, SMALL)
    path = trained.save(tmp_path / "encoder.safetensors")
    adapted = fit("encoder", policy, play, config={"path": str(path)})
    said = trained.network(encoder_inputs(policy, policy.transitions(play, policy.play_stats(play))))
    assert adapted.policy is policy and said.norm() > 0
    torch.testing.assert_close(adapted.context.embedding(), policy.model.prior().embedding().detach() + said)
    assert adapted.bytes_stored == adapted.context.num_bytes > 0
    json.dumps([adapted.config, adapted.history], allow_nan=False)
    # The same from the data, with the same training.
    training = {name: getattr(SMALL, name) for name in SMALL.__dataclass_fields__}
    settings = {"data": [str(data)], "features": str(tmp_path / "features"), "training": training}
    assert fit("encoder", policy, play, config=settings).context.distance(adapted.context) == 0


def test_its_file_comes_back_or_says_why_not(recorded, tmp_path):
    policy, _, recordings = recorded
    trained, play = train_encoder(policy, recordings, SMALL), make_play(3, 8)
    path = trained.save(tmp_path / "encoder.safetensors")
    again = TrainedEncoder.load(path, fingerprint=policy.fingerprint())
    assert again.training == trained.training and again.fingerprint == trained.fingerprint
    inputs = torch.randn(4, trained.network.sizes["inputs"])
    assert torch.equal(again.network(inputs), trained.network(inputs))
    with pytest.raises(ValueError, match="was trained for model"):
        fit("encoder", small_policy(seed=1), play, config={"path": str(path)})
    with pytest.raises(FileNotFoundError, match="selfalign bench encoder"):
        fit("encoder", policy, play, config={"path": str(tmp_path / "nowhere")})
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="train the encoder again"):
        TrainedEncoder.load(path)
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="is no encoder of this version"):
        TrainedEncoder.load(tmp_path / "other.safetensors")


def test_what_the_tower_saw_of_other_data_is_not_taken_for_these(recorded, tmp_path, monkeypatch):
    """Two data sets of as many frames, without a folder that was named for either."""
    policy, data, _ = recorded
    monkeypatch.chdir(tmp_path)
    other = write_fake(tmp_path / "other", rigs=5, episodes=3, image_size=16, seed=1)
    seen = [Recordings.open(policy, (str(d),)).sources().features.tokens["scene"] for d in (data, other)]
    assert seen[0].shape == seen[1].shape and not np.array_equal(*seen)
    assert len(list((tmp_path / "outputs/encoder.features").iterdir())) == 2


def test_recordings_that_do_not_suffice_are_refused(recorded, tmp_path):
    policy, data, _ = recorded
    lonely = write_fake(tmp_path / "lonely", rigs=1, episodes=2, image_size=16)
    with pytest.raises(ValueError, match="at least 2 source bodies"):
        train_encoder(policy, Recordings.open(policy, (str(lonely),), tmp_path / "features"), SMALL)
    with pytest.raises(ValueError, match="wrist"):
        Recordings.open(small_policy(cameras=("scene", "wrist")), (str(data),), tmp_path / "features")
    with pytest.raises(ValueError, match="rank=0"):
        EncoderTraining(rank=0)
    with pytest.raises(ValueError, match="holdout must be less than 1"):
        EncoderTraining(holdout=1.0)


def test_the_encoder_reads_as_many_transitions_as_told_evenly_spread(tmp_path):
    policy, play = small_policy(), make_play(3, 8)
    inputs = encoder_inputs(policy, policy.transitions(play, policy.play_stats(play)))
    w0 = policy.model.prior().embedding().detach()
    network = random_encoder(inputs.shape[1], len(w0))
    path = TrainedEncoder(network, policy.fingerprint()).save(tmp_path / "encoder.safetensors")
    adapted = fit("encoder", policy, play, config={"path": str(path), "transitions": 3})
    assert len(inputs) == 12
    torch.testing.assert_close(adapted.context.embedding(), w0 + network(inputs[[0, 6, 11]]))
    assert not torch.allclose(network(inputs[[0, 6, 11]]), network(inputs), atol=1e-3)


def test_the_encoder_is_judged_on_bodies_of_held_out_rigs_at_evenly_spread_times(recorded):
    policy, _, recordings = recorded
    config = replace(SMALL, steps=1, holdout=0.4, bodies=3, demonstrations=5)
    told = train_encoder(policy, recordings, config).training
    assert told["rigs"] == {"learned": 3, "held_out": 2}
    _, held_out = recordings.split(0.4, config.seed, config.reach_weight)
    generator = torch.Generator().manual_seed(config.seed)
    batches = [BodyBatch.draw(policy, held_out, config, generator, fixed=True) for _ in range(4)]
    expected = torch.stack([batch.loss(policy, None) for batch in batches]).mean()
    assert told["action_loss"]["prior"] == pytest.approx(float(expected.detach()), rel=1e-5)
    for batch in batches:
        even = FlowSamples.fixed(batch.shown.batch, config.seed).time.sort().values
        torch.testing.assert_close(batch.shown.time.sort().values, even)


def test_the_encoder_learns_more_of_reaching_by_its_weight(recorded):
    _, _, recordings = recorded
    plain, heavy = (recordings.split(0.0, 0, weight)[0] for weight in (1.0, 10.0))
    reach = np.array([task.startswith("reach") for task in recordings.cache.tasks])
    np.testing.assert_array_equal(plain.task_weight, 1.0)
    np.testing.assert_array_equal(heavy.task_weight, np.where(reach, 10.0, 1.0))
    assert reach.any() and len(plain.embodiment(0, EmbodimentPerturbation()).demonstrations)


def test_an_interrupted_training_goes_on_to_the_same_encoder(recorded, tmp_path, monkeypatch):
    policy, data, _ = recorded
    checkpoint = save_checkpoint(policy, tmp_path / "policy")
    told = {"rank": 3, "width": 8, "learning_rate": 1e-2}
    config = EncoderRun(checkpoint, (str(data),), tmp_path / "features", tmp_path / "a.safetensors", steps=4, **told)
    whole, again = run(config, show=False), replace(config, out=tmp_path / "b.safetensors")
    draw, drawn = BodyBatch.draw, []

    def interrupted(*arguments, **named):
        drawn.append(arguments)
        if len(drawn) == 1 + 3:  # one for the shapes, and the third step's
            raise KeyboardInterrupt
        return draw(*arguments, **named)

    monkeypatch.setattr(BodyBatch, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(again, show=False)
    unfinished = tmp_path / "b.safetensors.unfinished"
    assert unfinished.is_file() and not again.out.exists()
    with pytest.raises(ValueError, match=f"{unfinished} is of another fit.*rank"):
        run(replace(again, rank=4), show=False)
    before = len(drawn)
    resumed = run(again, show=False)
    assert len(drawn) - before == 1 + 2, "two steps were left"
    assert resumed.training == whole.training and not unfinished.exists()
    for one, other in zip(resumed.network.parameters(), whole.network.parameters(), strict=True):
        assert torch.equal(one, other)
