import json
from pathlib import Path

import numpy as np
import pytest

from damage import check_damage, flip_bits, overwrite, truncate
from data import drawn
from data.factory import make_episode
from data.rlds_data import STEP, block, example, group, tensor, varint, write_records, write_rlds
from selfalign.data.cache import EpisodeCache
from selfalign.data.play import Play
from selfalign.data.schema import ACTION, STATE
from selfalign.data.sources import SourceData

pytest.importorskip("google_crc32c", reason="RLDS needs google-crc32c and protobuf: pip install 'selfalign[rlds]'")
from selfalign.data.rlds import RldsReader
from selfalign.data.tfrecord import parse_example, read_record, read_records


@pytest.fixture(autouse=True)
def cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("SELFALIGN_CACHE", str(tmp_path / "user_cache"))


def make(seed: int):
    length, rng = 5 + seed, np.random.default_rng(seed)
    images = {c: rng.integers(0, 256, (length, 16, 24, 3), dtype=np.uint8) for c in ("image", "wrist")}
    task = ("", "pick up the cup", "öffne die Tür")[seed % 3]
    return make_episode(seed, length, images=images, extra={}, task=task)


@pytest.fixture
def episodes():
    return [make(seed) for seed in range(5)]


@pytest.fixture
def root(tmp_path, episodes):
    return write_rlds(tmp_path / "toy_robot" / "1.0.0", episodes)


def check(found, expected):
    assert (found.task, found.fps, found.is_play, list(found.images)) == (expected.task, 5.0, False, ["image", "wrist"])
    for camera, frames in expected.images.items():
        np.testing.assert_array_equal(found.images[camera], frames)
    np.testing.assert_array_equal(found.state, expected.state)
    np.testing.assert_array_equal(found.action, expected.action)


def test_every_step_is_read(root, episodes):
    reader = RldsReader(root, 5)
    assert len(reader) == 5 and reader.num_frames == sum(map(len, episodes))
    assert reader.embodiments == [{"name": "toy_robot"}]
    order = (3, 0, 1, 4, 2)
    for index, found in zip(order, reader.episodes(order), strict=True):
        check(reader[index], episodes[index])
        check(found, episodes[index])
    assert len(list(reader.episodes())) == 5
    assert reader.info.cameras == ("image", "wrist") and reader.info.fps == 5
    assert reader.info.features["observation.images.wrist"].image_shape == (16, 24, 3), "of the first picture"
    assert reader.info.features[ACTION].names == ["action_0", "action_1", "action_2", "action_3"]
    assert {"is_first", "reward", "language_embedding", "observation/depth"} <= set(reader.info.ignored)
    columns = reader.columns([ACTION, STATE])
    np.testing.assert_array_equal(columns[ACTION], np.concatenate([e.action for e in episodes]))


def test_what_tensorflow_datasets_wrote_is_read():
    """`make_rlds.py` says how; TFDS has shuffled the episodes, and each picture tells where it belongs."""
    reader = RldsReader(Path(__file__).parent / "recordings" / "rlds" / "drawn", drawn.FPS)
    assert reader.info.cameras == ("compressed", "scene", "wrist") and reader.embodiments == [{"name": "drawn"}]
    episodes = [reader[index] for index in range(len(reader))]
    found = [drawn.read(episode.images["scene"][0])[1] for episode in episodes]
    assert sorted(found) == list(range(len(drawn.LENGTHS)))
    for index, episode in zip(found, episodes, strict=True):
        assert (episode.task, len(episode)) == (drawn.task(index), drawn.LENGTHS[index])
        np.testing.assert_array_equal(episode.state, drawn.numbers(index, "observation.state"))
        np.testing.assert_array_equal(episode.action, drawn.numbers(index, "action"))
        for number, camera in enumerate(drawn.CAMERAS):
            expected = np.stack([drawn.draw(number, index, t) for t in range(len(episode))])
            np.testing.assert_array_equal(episode.images[camera], expected)
        assert [drawn.read(image) for image in episode.images["compressed"]] == [
            (0, index, t) for t in range(len(episode))
        ]


def test_it_is_a_source_like_any_other(root, episodes, tmp_path):
    source = SourceData.open(f"rlds:{root.parent}@5", cameras={"scene": "image"})
    assert [ref.task for ref in source.refs] == [e.task for e in episodes]
    cache = EpisodeCache.build(source, tmp_path / "cache")
    np.testing.assert_array_equal(cache.images("scene"), np.concatenate([e.images["image"] for e in episodes]))
    play = Play.open(f"rlds:{root}@5")
    np.testing.assert_array_equal(play.action(), np.concatenate([e.action for e in episodes]))
    assert play.num_transitions(4) == sum(len(e) - 4 for e in episodes)


def test_the_index_is_kept_and_a_change_makes_it_anew(root, episodes, monkeypatch):
    first = RldsReader(root, 5)
    with monkeypatch.context() as patch:
        patch.setattr(RldsReader, "_scan", None)
        second = RldsReader(root, 5)
    assert second.metadata == first.metadata and second.fingerprint == first.fingerprint
    before = first.fingerprint
    assert RldsReader(root, 10).fingerprint != before
    (root / "toy_robot-train.tfrecord-00000-of-00003").touch()
    assert RldsReader(root, 5).fingerprint != before


def test_parts_of_states_and_actions_are_joined(tmp_path):
    step = group(
        action=group(arm=tensor("float32", 2), grip=tensor("float32")),
        observation=group(joints=tensor("float32", 2), depth_embedding=tensor("float32", 9), grip=tensor("float32")),
    )
    root = write_rlds(tmp_path / "data", [make(0)], step=step)
    rng, names = np.random.default_rng(0), ("action/arm", "action/grip", "observation/joints", "observation/grip")
    values = {name: rng.normal(size=(3, n)).astype(np.float32) for name, n in zip(names, (2, 1, 2, 1), strict=True)}
    data = example({f"steps/{name}": x.reshape(-1) for name, x in values.items()})
    write_records(root / "toy_robot-train.tfrecord-00000-of-00001", [data])
    reader = RldsReader(root, 10)
    assert reader.info.features[STATE].names == ["grip", "joints_0", "joints_1"] and reader.info.cameras == ()
    (found,) = reader.trajectories([0])
    np.testing.assert_array_equal(found[0], np.hstack([values["observation/grip"], values["observation/joints"]]))
    np.testing.assert_array_equal(found[1], np.hstack([values["action/arm"], values["action/grip"]]))


def test_examples_are_protobufs():
    numbers = np.array([1.5, -2, np.inf], np.float32)
    found = parse_example(example({"a": numbers, "b": np.array([0, 300, -1]), "c": [b"", b"x"], "d": []}))
    np.testing.assert_array_equal(found["a"], numbers)
    np.testing.assert_array_equal(found["b"], [0, 300, -1])
    assert found["c"] == [b"", b"x"] and found["d"] == []
    single = block(1, block(1, block(1, b"e") + block(2, block(3, varint(1 << 3) + varint(7)))))  # not packed
    np.testing.assert_array_equal(parse_example(single)["e"], [7])
    with pytest.raises(ValueError, match=r"not a tf\.train\.Example"):
        parse_example(b"\xff\xff\xff")


def test_records_come_back(tmp_path):
    path, records = tmp_path / "file", [b"", b"abc", bytes(range(256)) * 9]
    write_records(path, records)
    found = list(read_records(path))
    assert [record.data for record in found] == records
    assert read_record(path, found[2].offset) == records[2]
    with pytest.raises(ValueError, match="has no record at byte"):
        read_record(path, path.stat().st_size)


def reading(root):
    """All that is read of a data set."""
    reader = RldsReader(root, 5)
    return tuple((episode.columns(), episode.task) for episode in (reader[index] for index in range(len(reader))))


def test_200_damaged_files_are_errors_that_name_the_file(root, tmp_path):
    """Cut off, with flipped bits or other bytes: records have checksums, so nothing of it goes unseen."""
    kinds = [lambda root, rng, kind=kind: kind(root, rng, "*.tfrecord-*") for kind in (truncate, flip_bits, overwrite)]
    check_damage(root, tmp_path, range(200), kinds, reading, errors=0.98)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "features.json").unlink(), r"features\.json is missing"),
        (lambda root: (root / "features.json").write_text("{}"), "describes no RLDS steps"),
        (lambda root: (root / "toy_robot-train.tfrecord-00001-of-00003").unlink(), "should have 3 files of train, 2"),
        (lambda root: edit(root / "dataset_info.json", ["2", "1", "1"]), "has 2 episodes, dataset_info.json says 1"),
        (lambda root: features(root, action={"text": {}}), "has no action; its steps have"),
        (lambda root: features(root, action=tensor("float32", 3)), "numbers of steps/action are no steps of 3"),
    ],
)
def test_contradictions_are_named(root, change, message):
    change(root)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        RldsReader(root, 5)


def edit(path, lengths):
    path.write_text(json.dumps(json.loads(path.read_text()) | {"splits": [{"name": "train", "shardLengths": lengths}]}))


def features(root, **changes):
    step = group(**{**STEP["featuresDict"]["features"], **changes})
    (root / "features.json").write_text(json.dumps(group(steps={"sequence": {"feature": step}})))


def test_what_is_not_told_is_asked_for(root, tmp_path):
    with pytest.raises(ValueError, match="write rlds:PATH@HZ"):
        SourceData.open(f"rlds:{root}")
    with pytest.raises(ValueError, match="must be a positive number of steps"):
        SourceData.open(f"rlds:{root}@0")
    with pytest.raises(ValueError, match="no split 'val'; it has train"):
        RldsReader(root, 5, split="val")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no dataset_info\.json"):
        RldsReader(tmp_path / "empty", 5)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        RldsReader(tmp_path / "nowhere", 5)
