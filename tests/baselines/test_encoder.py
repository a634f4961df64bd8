"""The encoder: it can say what it was taught, its file is checked, and the method gives what it says."""

import json

import pytest
import torch
from safetensors.torch import save_file

from align.factory import make_play, small_policy
from selfalign.align.offline import align
from selfalign.baselines import fit
from selfalign.baselines.encoder import PlayEncoder, TrainedEncoder, moved_prior
from selfalign.baselines.encoder_training import (
    EncoderTraining,
    Example,
    read_examples,
    train_encoder,
    unexplained,
)

SMALL = EncoderTraining(rank=4, width=16, steps=3, transitions=5, bodies=2, holdout=0.0)


def examples(count: int, size: int = 144, transitions: int = 20, inputs: int = 7) -> list[Example]:
    """Made-up bodies: what a body's play looks like has nothing to do with its context."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return [Example(draw(transitions, inputs) + 2 * draw(inputs), 0.1 * draw(size), "model") for _ in range(count)]


def test_it_recovers_three_contexts_that_it_was_taught():
    taught = examples(3)
    settings = EncoderTraining(rank=8, width=32, steps=150, learning_rate=1e-2, transitions=20, holdout=0.0)
    trained = train_encoder(taught, settings)
    for example in taught:
        found = trained.network.moved(trained.network(example.inputs))
        others = [(found - other.moved).norm() for other in taught if other is not example]
        assert (found - example.moved).norm() < 0.05 * min(others)
    assert trained.training["unexplained"]["learned"] < 1e-3
    assert trained.training["unexplained"]["held_out"] is None


def test_coordinates_are_those_of_the_principal_directions():
    taught = examples(5)
    network = train_encoder(taught, SMALL).network
    moved = torch.stack([e.moved for e in taught])
    torch.testing.assert_close(network.moved(network.coordinates(moved)), moved)  # 5 points lie in 4 directions
    torch.testing.assert_close(network.basis @ network.basis.T, torch.eye(4), rtol=0.0, atol=1e-5)
    variances = network.coordinates(moved).square().mean(0)
    assert (variances.diff() <= 1e-6).all()
    torch.testing.assert_close(variances.sum(), torch.tensor(1.0))


def test_missing_everything_is_one_and_held_out_bodies_choose_the_step():
    taught = examples(8)
    network = train_encoder(taught, SMALL).network
    for parameter in network.head[-1].parameters():
        parameter.zero_()
    assert unexplained(network, taught) == pytest.approx(1.0, rel=1e-5)  # it says the mean for every body
    trained = train_encoder(taught, EncoderTraining(rank=4, width=16, steps=20, holdout=0.25))
    assert trained.training["source_bodies"] == {"learned": 6, "held_out": 2}
    assert trained.training["unexplained"]["held_out"] > 0.5  # there is nothing to learn about others
    assert 0 <= trained.training["best_step"] <= 20


def test_the_order_of_transitions_means_nothing():
    network = train_encoder(examples(3), SMALL).network
    inputs = torch.randn(9, 7)
    torch.testing.assert_close(network(inputs), network(inputs.flip(0)))
    torch.testing.assert_close(network(torch.stack([inputs, inputs.flip(0)]))[1], network(inputs))


def test_a_difference_becomes_a_context():
    model = small_policy().model
    moved = torch.randn_like(model.prior().embedding())
    context = moved_prior(model, moved)
    torch.testing.assert_close(context.embedding() - model.prior().embedding(), moved, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """(policy, plays, folder of examples, encoder)."""
    policy, folder = small_policy(), tmp_path_factory.mktemp("examples")
    plays = [make_play(3, 8, seed=i, scale=1.0 + i) for i in range(3)]
    for i, play in enumerate(plays):
        Example.of(policy, play).save(folder / f"{i}.safetensors")
    return policy, plays, folder, train_encoder(read_examples(folder), SMALL)


def test_examples_hold_what_aligning_found(collected):
    policy, plays, folder, _ = collected
    expected = align(policy, plays[1], progress=False).fitted
    moved = read_examples(folder)[1].moved
    torch.testing.assert_close(moved, expected.embedding() - policy.model.prior().embedding().detach())
    assert policy.model.training is False


def test_the_method_gives_what_the_encoder_says(collected, tmp_path):
    policy, plays, folder, trained = collected
    path = trained.save(tmp_path / "encoder.safetensors")
    example = read_examples(folder)[0]
    said = trained.network.moved(trained.network(example.inputs))
    adapted = fit("encoder", policy, plays[0], config={"path": str(path)})
    assert adapted.policy is policy
    torch.testing.assert_close(adapted.context.embedding(), policy.model.prior().embedding().detach() + said)
    assert adapted.bytes_stored == adapted.context.num_bytes > 0
    json.dumps([adapted.config, adapted.history], allow_nan=False)
    # The same from the examples, with the same training.
    training = {"rank": 4, "width": 16, "steps": 3, "transitions": 5, "bodies": 2, "holdout": 0.0}
    again = fit("encoder", policy, plays[0], config={"examples": str(folder), "training": training})
    assert again.context.distance(adapted.context) == 0


def test_its_file_comes_back_or_says_why_not(collected, tmp_path):
    policy, plays, _, trained = collected
    path = trained.save(tmp_path / "encoder.safetensors")
    again = TrainedEncoder.load(path, fingerprint=policy.fingerprint())
    assert again.training == trained.training and again.fingerprint == trained.fingerprint
    inputs = torch.randn(4, trained.network.sizes["inputs"])
    assert torch.equal(again.network(inputs), trained.network(inputs))
    with pytest.raises(ValueError, match="was trained for model"):
        fit("encoder", small_policy(seed=1), plays[0], config={"path": str(path)})
    with pytest.raises(FileNotFoundError, match="selfalign bench encoder"):
        fit("encoder", policy, plays[0], config={"path": str(tmp_path / "nowhere")})
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="train the encoder again"):
        TrainedEncoder.load(path)
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="is not an encoder"):
        TrainedEncoder.load(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="is not an example"):
        Example.load(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="remove it and collect again"):
        Example.load(path)


def test_examples_that_do_not_suffice_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 2 source bodies"):
        train_encoder(examples(1), SMALL)
    mixed = [*examples(2), Example(torch.zeros(3, 7), torch.zeros(144), "another")]
    with pytest.raises(ValueError, match="of one model"):
        train_encoder(mixed, SMALL)
    with pytest.raises(FileNotFoundError, match="no examples"):
        read_examples(tmp_path)
    with pytest.raises(ValueError, match="rank=0"):
        EncoderTraining(rank=0)
    assert isinstance(train_encoder(examples(2), SMALL).network, PlayEncoder)
