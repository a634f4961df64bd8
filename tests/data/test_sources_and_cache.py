import errno
from pathlib import Path

import numpy as np
import pytest

from data.factory import BODIES, assert_same, make_episode
from selfalign.data import cache as cache_module
from selfalign.data.cache import EpisodeCache
from selfalign.data.lerobot import LeRobotReader, LeRobotWriter
from selfalign.data.sources import SourceData, split_name


def write(root, episodes, embodiments=BODIES):
    with LeRobotWriter(root, embodiments=embodiments) as writer:
        for episode in episodes:
            writer.add_episode(episode)
    return root


@pytest.fixture
def shards(tmp_path):
    """Two shards that share the body 'right' under different numbers."""
    left = [make_episode(seed, length=9 + seed) for seed in range(3)]
    right = [make_episode(seed, length=9 + seed) for seed in range(3, 7)]
    write(tmp_path / "all/shard-00", left)
    write(tmp_path / "all/shard-01", right, [{"name": "right"}, {"name": "third"}])
    return tmp_path / "all", left + right


def test_a_folder_of_shards_is_one_source(shards):
    root, episodes = shards
    source = SourceData.open(root)
    assert len(source) == 7 and source.num_frames == sum(map(len, episodes))
    assert source.embodiments == [{"name": "left"}, {"name": "right"}, {"name": "third"}]
    # seeds 0..2 are bodies 0, 1, 0 of the first shard; seeds 3..6 are 1, 0, 1, 0 of the second, renumbered
    assert [ref.embodiment_index for ref in source.refs] == [0, 1, 0, 2, 1, 2, 1]
    for episode, expected, ref in zip(source.episodes(), episodes, source.refs, strict=True):
        assert episode.embodiment_index == ref.embodiment_index
        np.testing.assert_array_equal(episode.action, expected.action)
    columns = source.columns(["action", "embodiment_index"])
    np.testing.assert_array_equal(columns["action"], np.concatenate([e.action for e in episodes]))
    assert columns["embodiment_index"].tolist() == np.repeat([0, 1, 0, 2, 1, 2, 1], [len(e) for e in episodes]).tolist()


def test_sources_that_differ_are_refused(shards, tmp_path):
    root, _ = shards
    write(tmp_path / "other", [make_episode(0, size=(8, 8))])
    with pytest.raises(ValueError, match=r"differ in the columns observation\.images\.scene"):
        SourceData.open([root, tmp_path / "other"])
    with pytest.raises(FileNotFoundError, match="holds no data set"):
        SourceData.open(tmp_path / "all/shard-00/data")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        SourceData.open(tmp_path / "nowhere")


def test_the_cache_holds_every_frame(shards, tmp_path):
    root, episodes = shards
    cache = EpisodeCache.build(SourceData.open(root), tmp_path / "cache")
    assert (cache.num_episodes, cache.num_frames) == (7, sum(map(len, episodes)))
    for name in ("observation.state", "action", "privileged.points", "grasped"):
        np.testing.assert_array_equal(cache.column(name), np.concatenate([e.columns()[name] for e in episodes]))
    np.testing.assert_array_equal(cache.images("scene"), np.concatenate([e.images["scene"] for e in episodes]))
    assert not cache.images("scene").flags.writeable
    assert cache.episode_lengths.tolist() == [len(e) for e in episodes]
    assert [cache.tasks[i] for i in cache.task_index] == [e.task for e in episodes]
    assert cache.is_play.tolist() == [e.is_play for e in episodes]
    assert cache.embodiments[2] == {"name": "third"}
    assert cache.episodes_of(1).tolist() == [1, 4, 6] and cache.episodes_of(1, is_play=True).tolist() == [6]
    with pytest.raises(KeyError, match="no camera 'wrist'"):
        cache.images("wrist")


def test_chunks_and_transitions_stay_within_their_episode(shards, tmp_path):
    root, _ = shards
    cache = EpisodeCache.build(SourceData.open(root), tmp_path / "cache")
    horizon, expected = 4, []
    for start, length in zip(cache.episode_starts, cache.episode_lengths, strict=True):
        expected += [start + t for t in range(length) if t + horizon <= length - 1]
    assert cache.transitions(horizon).tolist() == expected
    assert cache.transitions(100).tolist() == []
    assert set(cache.episode_of_frame[cache.transitions(horizon, [2, 5])]) == {2, 5}

    frames, real = cache.chunk(np.arange(cache.num_frames), horizon)
    owner = np.repeat(np.arange(7), cache.episode_lengths)
    assert (owner[frames] == owner[:, None]).all()
    for t in (0, 6, 8, 9, cache.num_frames - 1):
        for step in range(horizon):
            inside = t + step < cache.num_frames and owner[t + step] == owner[t]
            assert real[t, step] == inside
            assert not inside or frames[t, step] == t + step


def test_the_cache_is_made_once_and_per_size(shards, tmp_path, monkeypatch):
    source = SourceData.open(shards[0])
    first = EpisodeCache.build(source, tmp_path / "cache")
    small = EpisodeCache.build(source, tmp_path / "cache", image_size=8)
    assert small.images("scene").shape[1:] == (8, 8, 3) and small.root != first.root
    monkeypatch.setattr(cache_module, "_decode_into", lambda *args: pytest.fail("decoded twice"))
    assert EpisodeCache.build(source, tmp_path / "cache").root == first.root
    assert EpisodeCache.open(first.root).num_frames == first.num_frames
    with pytest.raises(FileNotFoundError, match="not an episode cache"):
        EpisodeCache.open(tmp_path)


def test_workers_decode_the_same_frames(tmp_path):
    write(tmp_path / "pictures", [make_episode(seed, length=5 + seed) for seed in range(5)])
    with LeRobotWriter(tmp_path / "video", embodiments=BODIES, video=True) as writer:
        for seed in range(3):
            writer.add_episode(make_episode(seed, length=5 + seed, extra={}))
    for name in ("pictures", "video"):
        source = SourceData.open(tmp_path / name)
        _ = source[1].images  # a decoder that this process has open is not the workers'
        alone, shared = (
            EpisodeCache.build(source, tmp_path / f"cache-{name}-{workers}", image_size=12, workers=workers)
            for workers in (0, 2)
        )
        np.testing.assert_array_equal(alone.images("scene"), shared.images("scene"))
        for column in alone.column_names:
            np.testing.assert_array_equal(alone.column(column), shared.column(column))
    (file,) = (tmp_path / "pictures" / "data").rglob("*.parquet")
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match=file.name):
        EpisodeCache.build(SourceData.open(tmp_path / "pictures"), tmp_path / "damaged", workers=2)
    assert list((tmp_path / "damaged").iterdir()) == []


def test_a_failed_build_leaves_nothing(shards, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        EpisodeCache.build(SourceData.open(shards[0]), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_reader_alone_can_be_cached(shards, tmp_path):
    reader = LeRobotReader(shards[0] / "shard-00")
    cache = EpisodeCache.build(reader, tmp_path / "cache")
    assert_same(next(reader.episodes()), shards[1][0])
    assert cache.num_episodes == 3


@pytest.mark.parametrize(
    ("name", "paths"),
    [
        ("data/a", ["lerobot data/a"]),
        ("lerobot:data/a", ["lerobot data/a"]),
        ("lerobot:/data/a,b", ["lerobot /data/a", "lerobot b"]),
        ("rlds:a/1.0.0@5,b@10", ["rlds a/1.0.0@5", "rlds b@10"]),
        (Path("data/2024:03/a"), ["lerobot data/2024:03/a"]),
    ],
)
def test_names_stand_for_paths(name, paths):
    assert [f"{kind} {path}" for kind, path in split_name(name)] == paths


@pytest.mark.parametrize(("name", "message"), [("hdf5:a", "known: lerobot:, rlds:"), ("lerobot:,", "names no path")])
def test_names_that_stand_for_nothing(name, message):
    with pytest.raises(ValueError, match=message):
        split_name(name)


def test_a_path_that_has_a_colon_and_exists_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zarr:a").mkdir()
    assert split_name("zarr:a") == [("lerobot", Path("zarr:a"))]


def test_several_data_sets_by_one_name_with_cameras_renamed(shards):
    roots = [shards[0] / "shard-00", shards[0] / "shard-01"]
    plain = SourceData.open(roots)
    joined = SourceData.open("lerobot:" + ",".join(map(str, roots)), cameras={"base": "scene"})
    assert len(joined) == len(plain) and joined.fingerprint != plain.fingerprint
    assert SourceData.open("lerobot:" + ",".join(map(str, roots))).fingerprint == plain.fingerprint
    for found, expected in zip(joined.episodes(), plain.episodes(), strict=True):
        assert list(found.images) == ["base"]
        np.testing.assert_array_equal(found.images["base"], expected.images["scene"])
    with pytest.raises(ValueError, match="has no camera wrist; it has scene"):
        SourceData.open(roots, cameras={"base": "wrist"})
