"""Stored features of next observations: what is computed, how it is kept, and who reads it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist

from align.factory import make_episode
from selfalign.align import pretrain
from selfalign.align.pretrain import frame_features
from selfalign.checkpoint import save_checkpoint
from selfalign.commands import align as align_command
from selfalign.commands.features import FeaturesConfig, run
from selfalign.data.cache import EpisodeCache
from selfalign.data.extractors import Projection, TimmFeatures, TowerFeatures, pool_tokens
from selfalign.data.feature_writer import write_features
from selfalign.data.features import FeatureStore
from selfalign.data.lerobot import LeRobotWriter
from selfalign.data.play import Play
from selfalign.data.sources import SourceData
from selfalign.data.transforms import pixels_to_model
from selfalign.model.policy import VLA
from selfalign.policy import Policy
from selfalign.settings import AlignSettings
from small_model import randomise, small_config


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy.from_model(randomise(VLA(small_config())))


@pytest.fixture(scope="module")
def episodes():
    return [make_episode(seed, 8 + seed) for seed in range(4)]


@pytest.fixture
def places(tmp_path, policy, episodes):
    with LeRobotWriter(tmp_path / "data") as writer:
        for episode in episodes:
            writer.add_episode(episode)
    save_checkpoint(policy, tmp_path / "checkpoint")
    return tmp_path


def features(places, **changes) -> FeatureStore:
    settings = {"data": (str(places / "data"),), "out": places / "store", "checkpoint": places / "checkpoint"}
    return run(FeaturesConfig(**{**settings, **changes}))


def test_the_towers_features_give_what_the_model_computes_itself(places, policy, episodes):
    store = features(places, batch_size=3)
    frames = np.concatenate([e.images["scene"] for e in episodes])
    with torch.no_grad():
        expected = policy.model.vision.summary(policy.model.vision(pixels_to_model(frames)))
    np.testing.assert_allclose(store.features("scene"), expected, atol=1e-5)
    play = Play.open(places / "data", features=places / "store")
    told = replace(policy, settings=replace(policy.settings, features=store.name))
    found = told.transitions(told.repack_play(play), play.stats())
    own = policy.transitions(Play.from_episodes(episodes), play.stats())
    np.testing.assert_allclose(found.next_features, own.next_features, atol=1e-5)


def test_pretraining_reads_stored_features(places, policy):
    rng = np.random.default_rng(0)
    shape = policy.model.feature_mean.shape
    source = SourceData.open(places / "data")

    class Drawn:
        digest = "drawn"

        def __call__(self, frames):
            return rng.normal(3, 2, (len(frames), *shape))

    store = write_features(source, ("scene",), Drawn(), None, "drawn", places / "drawn")
    model = randomise(VLA(policy.model.config))
    with_features = SourceData.open(places / "data", features=places / "drawn")
    assert with_features.fingerprint != source.fingerprint
    cache = EpisodeCache.build(with_features, places / "cache")
    found = frame_features(model, cache, places, looks=("recoloured",))
    raw = np.asarray(store.features("scene"), np.float64)
    np.testing.assert_allclose(model.feature_mean, raw.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.next_features, (raw - raw.mean(0)) / raw.std(0, ddof=1), atol=1e-4)
    np.testing.assert_array_equal(found.looks[0].next_features, found.next_features)
    assert not np.array_equal(found.looks[0].tokens["scene"], found.tokens["scene"])
    np.testing.assert_array_equal(frame_features(model, cache, places).tokens["scene"], found.tokens["scene"])
    plain = EpisodeCache.build(source, places / "cache")
    assert plain.pictures == cache.pictures, "what the tower sees of both is one file"


@pytest.mark.parametrize("look", [None, "recoloured"])
def test_what_the_tower_sees_goes_on_where_it_was_interrupted(places, policy, monkeypatch, look):
    monkeypatch.setattr(pretrain, "KEEP_EVERY", 2)
    model, cache = VLA(policy.model.config), EpisodeCache.build(SourceData.open(places / "data"), places / "cache")
    looks = () if look is None else (look,)
    straight = frame_features(model, cache, new_folder(places / "straight"), batch=4, looks=looks)
    seen, forward = [], model.vision.forward

    def interrupted(pixels):
        if len(seen) == 7:
            raise KeyboardInterrupt
        seen.append(pixels)
        return forward(pixels)

    monkeypatch.setattr(model.vision, "forward", interrupted)
    folder, blocks = new_folder(places / "resumed"), -(-cache.num_frames // 4) * (1 + len(looks))
    with pytest.raises(KeyboardInterrupt):
        frame_features(model, cache, folder, batch=4, looks=looks)
    monkeypatch.setattr(model.vision, "forward", lambda pixels: seen.append(pixels) or forward(pixels))
    resumed = frame_features(model, cache, folder, batch=4, looks=looks)
    assert len(seen) == blocks + 1, "six of the seven blocks were kept"
    np.testing.assert_array_equal(resumed.tokens["scene"], straight.tokens["scene"])
    for ours, theirs in zip(resumed.looks, straight.looks, strict=True):
        np.testing.assert_array_equal(ours.tokens["scene"], theirs.tokens["scene"])
    assert not list(folder.glob("*.rows")) and not list(folder.glob("*.partial.npy"))


def new_folder(path):
    path.mkdir()
    return path


def test_an_interrupted_computation_goes_on(places, policy):
    source, tower, calls = SourceData.open(places / "data"), TowerFeatures(policy.model), []

    class Interrupted:
        digest = tower.digest

        def __init__(self, after):
            self.after = after

        def __call__(self, frames):
            if len(calls) == self.after:
                raise KeyboardInterrupt
            calls.append(len(frames))
            return tower(frames)

    with pytest.raises(KeyboardInterrupt):
        write_features(source, ("scene",), Interrupted(2), None, tower.digest, places / "store")
    assert not (places / "store").exists()
    store = write_features(source, ("scene",), Interrupted(99), None, tower.digest, places / "store")
    assert calls == [8, 9, 10, 11], "each episode once"
    whole = write_features(source, ("scene",), tower, None, tower.digest, places / "whole")
    np.testing.assert_array_equal(store.features("scene"), whole.features("scene"))
    assert not list(places.glob(".store*"))
    assert write_features(source, ("scene",), Interrupted(0), None, tower.digest, places / "store").root == store.root


def test_components_are_the_sampled_ones_and_keep_distances():
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(200, 3)) @ rng.normal(size=(3, 12)) + 5  # three directions of twelve
    projection = Projection.fit(samples, 3)
    found = projection(samples)
    np.testing.assert_allclose(np.cov(found.T, bias=True), np.eye(3), atol=1e-5)
    centred = samples - samples.mean(0)
    back = found @ np.linalg.pinv(projection.components)
    np.testing.assert_allclose(back, centred, atol=1e-4)
    assert pdist(back[:20]) == pytest.approx(pdist(centred[:20]), rel=1e-4)
    with pytest.raises(ValueError, match="have no 13 principal components"):
        Projection.fit(samples, 13)


def test_tokens_are_pooled_row_by_row():
    tokens = torch.arange(16.0)[None, :, None]
    np.testing.assert_array_equal(pool_tokens(tokens, 2).flatten(), [2.5, 4.5, 10.5, 12.5])
    with pytest.raises(ValueError, match="no square"):
        pool_tokens(tokens[:, :15], 2)


def test_features_of_other_data_or_models_are_refused(places, policy, episodes):
    store = features(places)
    with LeRobotWriter(places / "other") as writer:
        writer.add_episode(episodes[0])
    with pytest.raises(ValueError, match="features of another data set"):
        Play.open(places / "other", features=places / "store")
    play = Play.open(places / "data", features=places / "store")
    with pytest.raises(ValueError, match=r"knows next observations by the tower's own, .* the stored features tower-"):
        policy.repack_play(play)
    told = replace(policy, settings=replace(policy.settings, features="dinov2"))
    with pytest.raises(ValueError, match="by the stored features dinov2"):
        told.repack_play(Play.open(places / "data"))
    assert AlignSettings.from_dict(told.settings.to_dict()) == told.settings
    old = {k: v for k, v in policy.settings.to_dict().items() if k != "features"}
    assert AlignSettings.from_dict(old) == policy.settings
    with pytest.raises(ValueError, match="holds other features"):
        write_features(
            SourceData.open(places / "other"), ("scene",), TowerFeatures(policy.model), None, "x", store.root
        )


def test_stored_features_of_another_size_are_refused(places, policy):
    source = SourceData.open(places / "data")

    class Wide:
        digest = "wide"

        def __call__(self, frames):
            return np.zeros((len(frames), 1, 99))

    write_features(source, ("scene",), Wide(), None, "wide", places / "wide")
    play = Play.open(places / "data", features=places / "wide")
    with pytest.raises(ValueError, match=r"are \[1, 99\] an observation, the model takes"):
        policy.transitions(play, play.stats())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "scene.npy").unlink(), r"scene\.npy is missing"),
        (lambda root: (root / "scene.npy").write_bytes(b"\x93NUMPY"), "damaged or cut off"),
        (lambda root: (root / "features.json").write_text("{}"), "damaged or of another version"),
        (lambda root: (root / "features.json").unlink(), "holds no features"),
        (lambda root: edit(root / "features.json", lengths=[1]), "frames of scene, features.json says 1"),
    ],
)
def test_damage_is_named(places, damage, message):
    store = features(places)
    damage(store.root)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Play.open(places / "data", features=store.root)


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cameras": {"base": "scene"}}, "lacks the model's cameras scene; use --cameras"),
        ({"extractor": "vit_small_patch14_dinov2"}, "give the file with the weights"),
    ],
)
def test_mistakes_are_named(places, changes, message):
    with pytest.raises(ValueError, match=message):
        features(places, **changes)


def test_timms_transformers_are_pooled_and_projected(places, tmp_path):
    timm = pytest.importorskip("timm", reason="features of timm's models: pip install 'selfalign[features]'")
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=0, img_size=32).eval()
    torch.save(model.state_dict(), tmp_path / "vit.pt")
    extractor = TimmFeatures("test_vit", tmp_path / "vit.pt", grid=2, image_size=32)
    frames = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    told = timm.data.resolve_model_data_config(model)
    pixels = (frames / 255 - np.array(told["mean"])) / np.array(told["std"])
    with torch.no_grad():
        tokens = model.forward_features(torch.from_numpy(pixels).permute(0, 3, 1, 2).float())
    np.testing.assert_allclose(extractor(frames), tokens[:, model.num_prefix_tokens :], atol=1e-4)  # 2 x 2 patches
    with pytest.raises(FileNotFoundError, match="no weights of test_vit"):
        TimmFeatures("test_vit", tmp_path / "absent.pt")
    settings = {"extractor": "test_vit", "weights": tmp_path / "vit.pt", "image_size": 32}
    first = features(places, **settings)
    again = features(places, **settings, like=first.root, out=places / "again")
    assert first.name == again.name and first.projection is not None
    np.testing.assert_array_equal(first.features("scene"), again.features("scene"))
    with pytest.raises(ValueError, match="was made by"):
        features(places, **settings | {"image_size": 64}, like=first.root, out=places / "third")


def test_features_of_renamed_cameras_are_those_of_play_with_the_same_names(places, episodes, monkeypatch):
    with LeRobotWriter(places / "front") as writer:
        for episode in episodes:
            writer.add_episode(replace(episode, images={"front": episode.images["scene"]}))
    names = {"scene": "front"}
    store = features(places, data=(str(places / "front"),), cameras=names)
    with pytest.raises(ValueError, match=r"cameras that were named otherwise: name them as then \(--cameras\)"):
        Play.open(places / "front", features=store.root)
    play = Play.open(places / "front", cameras=names, features=store.root)
    assert play.cameras == ("scene",)
    np.testing.assert_array_equal(play.episodes[1].images["scene"], episodes[1].images["scene"])

    given = []

    def caught(policy, play, **options):
        given.append(play)
        raise KeyboardInterrupt

    monkeypatch.setattr(align_command, "align", caught)
    asked = {"play": str(places / "front"), "out": places / "w.safetensors", "checkpoint": places / "checkpoint"}
    with pytest.raises(KeyboardInterrupt):
        align_command.run(align_command.AlignCommand(**asked, cameras=names, features=store.root))
    assert given[0].cameras == ("scene",) and given[0].features == store.name
