"""Pretraining as a whole: from a data set on disk to a model."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from selfalign.align import pretrain as pretraining
from selfalign.align.pretrain import POINTS, PretrainConfig, pretrain
from selfalign.align.rehearsal import RehearsalConfig
from selfalign.align.settings import ContrastiveConfig
from selfalign.data.episodes import Episode
from selfalign.data.lerobot import LeRobotWriter
from selfalign.data.perturb import EmbodimentPerturbation
from selfalign.data.snapshots import Snapshots
from selfalign.data.sources import SourceData
from selfalign.model.config import VLAConfig
from selfalign.model.policy import VLA
from selfalign.model.weights import save_model, unique_tensors
from selfalign.train.loop import LoopConfig
from selfalign.train.pointing import PointingConfig, train_tower
from selfalign.train.step import OptimConfig
from selfalign.train.world import World
from small_model import randomise, small_config

CONFIG = PretrainConfig(
    steps=2,
    rehearsal=RehearsalConfig(slots=2, play_per_slot=2, demonstrations_per_slot=2),
    pointing=PointingConfig(steps=3, batch_size=4),
    loop=LoopConfig(tensorboard=False),
)


def record(folder: Path, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    with LeRobotWriter(folder, fps=20.0, embodiments=[{"name": "a"}]) as writer:
        for i in range(4):
            numbers = {name: rng.normal(size=(12, 4)).astype(np.float32) for name in ("state", "action")}
            images = {"scene": rng.integers(0, 255, (12, 16, 16, 3), dtype=np.uint8)}
            points = rng.uniform(0.1, 0.9, size=(12, 3, 3)).astype(np.float32)
            writer.add_episode(
                Episode(images, **numbers, task="reach" if i % 2 else "", is_play=i % 2 == 0, extra={POINTS: points})
            )
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return record(tmp_path_factory.mktemp("sources") / "data")


@pytest.fixture(autouse=True)
def cache_folder(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("SELFALIGN_CACHE", str(tmp_path_factory.mktemp("cache")))


def config() -> VLAConfig:
    return small_config(action_dim=8, state_dim=8, vocab_size=258)


def run(data, out, **changes) -> VLA:
    settings = {**{f: getattr(CONFIG, f) for f in CONFIG.__dataclass_fields__}, **changes}
    return pretrain(config(), [data], out, PretrainConfig(**settings), lambda *_: EmbodimentPerturbation())


def test_a_training_starts_from_a_checkpoint_and_keeps_its_tower(data, tmp_path):
    start = randomise(VLA(config()))
    save_model(start, tmp_path / "start")
    same = run(data, tmp_path / "same", steps=0, start=tmp_path / "start")
    further = run(data, tmp_path / "further", start=tmp_path / "start")
    statistics = {"feature_mean", "feature_std"}
    for name, value in unique_tensors(start).items():
        if name not in statistics:
            assert torch.equal(value, unique_tensors(same)[name]), name
        if name.startswith("vision."):
            assert torch.equal(value, unique_tensors(further)[name]), name
    assert not torch.equal(start.action_out.weight, further.action_out.weight)
    assert not (tmp_path / "further" / "tower.pt").exists()


def test_a_training_takes_the_tower_of_a_checkpoint_and_nothing_else_of_it(data, tmp_path):
    other = randomise(VLA(config()))
    save_model(other, tmp_path / "other")
    plain = run(data, tmp_path / "plain", steps=0)
    seeing = run(data, tmp_path / "seeing", steps=0, tower=tmp_path / "other")
    statistics = {"feature_mean", "feature_std"}
    for name, value in unique_tensors(seeing).items():
        if name not in statistics:
            theirs = unique_tensors(other if name.startswith("vision.") else plain)[name]
            assert torch.equal(value, theirs), name
    assert not (tmp_path / "seeing" / "tower.pt").exists()
    unlike = dataclasses.replace(config().vision, free=config().vision.free + 1)
    save_model(VLA(dataclasses.replace(config(), vision=unlike)), tmp_path / "unlike")
    with pytest.raises(ValueError, match=r"the vision tower of .*unlike"):
        run(data, tmp_path / "refused", steps=0, tower=tmp_path / "unlike")


def test_features_of_another_tower_are_not_used(data, tmp_path):
    for seed in (0, 1):
        save_model(randomise(VLA(config()), seed), tmp_path / f"start{seed}")
    out = tmp_path / "out"
    run(data, out, steps=0, start=tmp_path / "start0")
    run(data, out, steps=0, start=tmp_path / "start1")
    run(data, tmp_path / "alone", steps=0, start=tmp_path / "start1")
    assert len(list(out.glob("tokens-scene-*.npy"))) == 2
    (own,) = (tmp_path / "alone").glob("tokens-*.npy")
    np.testing.assert_array_equal(np.load(out / own.name), np.load(own))


def tokens_of(folder: Path) -> np.ndarray:
    (path,) = folder.glob("tokens-*.npy")
    return np.load(path)


@pytest.mark.parametrize("named", ["now", "before"])
def test_features_of_other_recordings_are_not_used(data, tmp_path, named):
    """As many frames of other pictures; `before`, files did not say of which recordings they are."""
    others, shared = record(tmp_path / "others", seed=1), tmp_path / "shared"
    save_model(randomise(VLA(config())), tmp_path / "start")
    settings = {"steps": 0, "start": tmp_path / "start"}
    run(data, tmp_path / "own", **settings, shared=shared)
    (first,) = shared.glob("tokens-*.npy")
    if named == "before":
        first = first.rename(shared / f"{first.name.rpartition('-')[0]}.npy")
    made = first.stat().st_mtime_ns
    run(data, tmp_path / "again", **settings, shared=shared)
    assert list(shared.glob("tokens-*.npy")) == [first] and first.stat().st_mtime_ns == made
    run(others, tmp_path / "own2", **settings, shared=shared)
    run(others, tmp_path / "alone", **settings)
    (second,) = {*shared.glob("tokens-*.npy")} - {first}
    np.testing.assert_array_equal(np.load(second), tokens_of(tmp_path / "alone"))
    assert not np.allclose(np.load(first), np.load(second), atol=0.01)


@pytest.mark.parametrize("told", ["now", "before"])
def test_a_tower_that_learned_on_other_pictures_is_refused(data, tmp_path, told):
    """`before`, a tower's file did not say on which; how far it errs there tells."""
    others, shared = record(tmp_path / "others", seed=1), tmp_path / "shared"
    taught = run(data, tmp_path / "own", steps=0, shared=shared)
    if told == "before":
        about = json.loads((shared / "tower.json").read_text())
        kept = {name: value for name, value in about.items() if name not in ("pictures", "start")}
        (shared / "tower.json").write_text(json.dumps(kept))
    repeated = dataclasses.replace(CONFIG.pointing, seed=1)
    again = run(data, tmp_path / "again", steps=0, shared=shared, seed=1, pointing=repeated)
    for name, value in unique_tensors(taught.vision).items():
        assert torch.equal(value, unique_tensors(again.vision)[name]), name
    with pytest.raises(ValueError, match=r"tower\.pt has learned otherwise or on other pictures \(.*give another one"):
        run(others, tmp_path / "other", steps=0, shared=shared)
    longer = dataclasses.replace(CONFIG.pointing, steps=4)
    with pytest.raises(ValueError, match=r"on other pictures \(steps\)"):
        run(data, tmp_path / "longer", steps=0, shared=shared, pointing=longer)


def test_a_training_from_nothing_teaches_the_tower_first(data, tmp_path):
    torch.manual_seed(0)
    run(data, tmp_path / "out")
    assert (tmp_path / "out" / "tower.pt").is_file() and (tmp_path / "out" / "tower.json").is_file()


def test_a_tower_goes_on_learning_on_snapshots(data, tmp_path):
    start, out = randomise(VLA(config())), tmp_path / "out"
    save_model(start, tmp_path / "start")
    rng = np.random.default_rng(1)
    images = rng.integers(0, 255, (6, 16, 16, 3), dtype=np.uint8)
    points = rng.uniform(0.1, 0.9, size=(6, 3, 4)).astype(np.float32)
    Snapshots(images, points).save(tmp_path / "snapshots")
    trained = run(data, out, steps=0, start=tmp_path / "start", snapshots=tmp_path / "snapshots")
    alone = randomise(VLA(config())).vision
    train_tower(alone, images, points, CONFIG.pointing)
    for name, value in unique_tensors(alone).items():
        torch.testing.assert_close(trained.vision.state_dict()[name], value, msg=name)
    # The features are of the frames of the policy's data, not of the snapshots.
    (tokens,) = out.glob("tokens-scene-*.npy")
    assert len(np.load(tokens)) == 48


def test_snapshots_of_another_size_are_refused(data, tmp_path):
    Snapshots(np.zeros((2, 20, 20, 3), np.uint8), np.zeros((2, 3, 4), np.float32)).save(tmp_path / "snapshots")
    with pytest.raises(ValueError, match="pictures of 20 px, the model reads 16"):
        run(data, tmp_path / "out", snapshots=tmp_path / "snapshots")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        run(data, tmp_path / "out", snapshots=tmp_path / "absent")


def test_inputs_are_looked_at_before_anything_is_made(data, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match="this torch has no CUDA"):
        gpu = World(device=torch.device("cuda"))
        pretrain(config(), [data], out, CONFIG, lambda *_: EmbodimentPerturbation(), world=gpu)
    with pytest.raises(FileNotFoundError):
        run(tmp_path / "nowhere", out)
    with pytest.raises(FileNotFoundError, match="no snapshots"):
        run(data, out, snapshots=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="1 data sets were given and 2 weights"):
        run(data, out, data_weights=(1.0, 2.0))
    renamed = SourceData.open(data, cameras={"wrist": "scene"})
    with pytest.raises(ValueError, match="lacks the model's cameras scene; use --cameras"):
        pretrain(config(), renamed, out, CONFIG, lambda *_: EmbodimentPerturbation())
    with LeRobotWriter(tmp_path / "plain") as writer:
        writer.add_episode(dataclasses.replace(SourceData.open(data)[0], extra={}))
    with pytest.raises(ValueError, match="does not say where things are in its pictures"):
        run(tmp_path / "plain", out)
    two = dataclasses.replace(config(), cameras=("scene", "wrist"))
    with LeRobotWriter(tmp_path / "two") as writer:
        episode = SourceData.open(data)[0]
        writer.add_episode(dataclasses.replace(episode, images=dict.fromkeys(two.cameras, episode.images["scene"])))
    with pytest.raises(ValueError, match="of one camera only, and the model has scene, wrist: record pictures"):
        pretrain(two, [tmp_path / "two"], out, CONFIG, lambda *_: EmbodimentPerturbation())
    assert not out.exists()


def test_turned_cameras_are_seen_once_and_kept(data, tmp_path):
    save_model(randomise(VLA(config())), tmp_path / "start")
    out, settings = tmp_path / "out", {"start": tmp_path / "start", "turned_cameras": 1}
    run(data, out, **settings)
    plain, turned = sorted(out.glob("tokens-scene-*.npy"), key=lambda path: len(path.name))
    assert turned.name == plain.name.replace(".npy", "-turned-1.npy")
    assert np.load(turned).shape == np.load(plain).shape and not np.array_equal(np.load(turned), np.load(plain))
    before = turned.stat().st_mtime_ns
    run(data, out, **settings)
    assert turned.stat().st_mtime_ns == before
    contrast = dataclasses.replace(CONFIG.rehearsal, slots=6, contrastive=ContrastiveConfig(0.1))
    with pytest.raises(ValueError, match="the contrastive loss takes no turned cameras"):
        run(data, tmp_path / "refused", rehearsal=contrast, **settings)


def test_a_training_does_not_go_on_with_other_settings(data, tmp_path, monkeypatch):
    out, compiled = tmp_path / "out", []
    monkeypatch.setattr(pretraining, "compile_streams", compiled.append)
    run(data, out)
    assert not compiled
    run(data, out, compile=True, workers=1)  # how it is computed may change
    assert len(compiled) == 1
    faster = OptimConfig(learning_rate=2 * CONFIG.optim.learning_rate)
    with pytest.raises(
        ValueError, match=r"other settings \(training\.optim\.learning_rate [\d.]+, not [\d.]+\): use the"
    ):
        run(data, out, optim=faster)
