"""Data sets that LeRobot itself wrote (`make_recordings.py` says how): each frame tells where it belongs."""

import json
import os
import shutil
from pathlib import Path

import av
import numpy as np
import pytest

from data import drawn
from selfalign.data import checksums
from selfalign.data.cache import EpisodeCache
from selfalign.data.lerobot import LeRobotReader
from selfalign.data.play import Play
from selfalign.data.sources import SourceData
from selfalign.data.windows import FrameWindows

RECORDINGS = Path(__file__).parent / "recordings"
NAMES = [f"{version}-{kind}" for version in ("v2.1", "v3.0") for kind in ("images", "video")]


def cameras(name):
    return drawn.CAMERAS if name.endswith("video") else drawn.CAMERAS[:1]


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def reader(name):
    return LeRobotReader(RECORDINGS / name)


def test_every_number_and_frame_is_where_it_belongs(name, reader):
    assert len(reader) == 4 and reader.info.codebase_version == name[:4] and reader.info.cameras == cameras(name)
    assert reader.embodiments == [{"name": "drawn"}]
    for index, episode in enumerate(reader.episodes()):
        assert (episode.task, episode.fps, len(episode)) == (drawn.task(index), drawn.FPS, drawn.LENGTHS[index])
        np.testing.assert_array_equal(episode.state, drawn.numbers(index, "observation.state"))
        np.testing.assert_array_equal(episode.action, drawn.numbers(index, "action"))
        np.testing.assert_array_equal(episode.extra["reward"], drawn.numbers(index, "reward")[:, 0])
        for number, camera in enumerate(cameras(name)):
            images = episode.images[camera]
            assert [drawn.read(image) for image in images] == [(number, index, t) for t in range(len(episode))]
            expected = np.stack([drawn.draw(number, index, t) for t in range(len(episode))])
            if name.endswith("images"):
                np.testing.assert_array_equal(images, expected)
            else:
                assert np.abs(images.astype(int) - expected).mean() < 8


def test_whole_columns_follow_the_episodes(reader):
    columns = reader.columns(["action", "reward", "timestamp"])
    np.testing.assert_array_equal(columns["action"], np.concatenate([drawn.numbers(e, "action") for e in range(4)]))
    times = np.concatenate([np.arange(length) / drawn.FPS for length in drawn.LENGTHS])
    np.testing.assert_allclose(columns["timestamp"], times, atol=1e-6)


def test_the_files_are_split_as_intended():
    files = [path for path in (RECORDINGS / "v3.0-video/videos").rglob("*.mp4") if "scene" in str(path)]
    assert 1 < len(files) < 4, "some episodes should share a video file and some should not"
    assert len(list((RECORDINGS / "v3.0-images/data").rglob("*.parquet"))) > 1


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_frames_equal_those_of_a_plain_decode(version):
    """Every frame of a file from its start, by counting and without any seek."""
    reader = LeRobotReader(RECORDINGS / f"{version}-video")
    for meta in reader.metadata:
        for camera, span in meta.videos.items():
            with av.open(str(reader.root / span.file)) as container:
                frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
            first = round(span.start * drawn.FPS)
            np.testing.assert_array_equal(reader[meta.index].images[camera], frames[first : first + meta.length])


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_frames_are_found_in_any_order(version):
    reader = LeRobotReader(RECORDINGS / f"{version}-video", max_open_videos=2)
    rng = np.random.default_rng(0)
    for _ in range(60):
        episode, number = int(rng.integers(4)), int(rng.integers(2))
        wanted = rng.integers(drawn.LENGTHS[episode], size=int(rng.integers(1, 6))).tolist()
        images = reader.frames(episode, drawn.CAMERAS[number], wanted)
        assert [drawn.read(image) for image in images] == [(number, episode, t) for t in wanted]
        assert len(reader.videos) <= 2


def test_windows_hold_neighbours_and_never_cross_an_episode(name, reader):
    offsets = {"action": [-0.1, 0.0, 0.1, 0.4], "observation.images.scene": [0.0, 0.3]}
    windows = FrameWindows(reader, offsets)
    frames = [(e, t) for e, length in enumerate(drawn.LENGTHS) for t in range(length)]
    assert len(windows) == len(frames)
    complete = set(windows.complete().tolist())
    for index in range(0, len(frames), 2):
        (episode, t), item = frames[index], windows[index]
        last = drawn.LENGTHS[episode] - 1
        for column, steps in (("action", [-1, 0, 1, 4]), ("observation.images.scene", [0, 3])):
            inside = [min(max(t + step, 0), last) for step in steps]
            assert item[f"{column}_is_pad"].tolist() == [not 0 <= t + step <= last for step in steps]
            if column == "action":
                np.testing.assert_array_equal(item[column], drawn.numbers(episode, "action")[inside])
            else:
                assert [drawn.read(image) for image in item[column]] == [(0, episode, i) for i in inside]
        np.testing.assert_array_equal(item["observation.state"], drawn.numbers(episode, "observation.state")[t])
        assert item["task"] == drawn.task(episode)
        assert (index in complete) == (t >= 1 and t + 4 <= last)


def test_uneven_and_unknown_offsets_are_refused():
    reader = LeRobotReader(RECORDINGS / "v3.0-images")
    with pytest.raises(ValueError, match=r"offset 0.13 s of 'action'.*multiples of 0.1"):
        FrameWindows(reader, {"action": [0.0, 0.13]})
    assert FrameWindows(reader, {"action": [0.13]}, tolerance_s=0.04).steps["action"].tolist() == [1]
    with pytest.raises(ValueError, match="no column 'torque'"):
        FrameWindows(reader, {"torque": [0.0]})


def test_both_versions_are_one_source_and_cache(tmp_path, monkeypatch):
    """Images and video of the same cameras may be mixed; training reads both alike."""
    monkeypatch.setenv("SELFALIGN_CACHE", str(tmp_path / "user_cache"))
    source = SourceData.open([RECORDINGS / "v2.1-video", RECORDINGS / "v3.0-video"])
    cache = EpisodeCache.build(source, tmp_path)
    assert cache.num_frames == 2 * sum(drawn.LENGTHS)
    owners = [(e, t) for _ in range(2) for e, length in enumerate(drawn.LENGTHS) for t in range(length)]
    for frame in range(0, cache.num_frames, 5):
        assert drawn.read(cache.images("wrist")[frame]) == (1, *owners[frame])
    mixed = SourceData.open([RECORDINGS / "v2.1-images", RECORDINGS / "v3.0-images"])
    assert len(mixed) == 8 and mixed.fingerprint != source.fingerprint


def test_play_is_read_from_video():
    play = Play.open(RECORDINGS / "v3.0-video")
    assert (play.cameras, play.num_frames) == (drawn.CAMERAS, sum(drawn.LENGTHS))


def test_v2_0_is_read_too(tmp_path):
    """It is v2.1 with statistics of the whole in one file."""
    root = shutil.copytree(RECORDINGS / "v2.1-images", tmp_path / "set")
    (root / "meta/episodes_stats.jsonl").unlink()
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps(info | {"codebase_version": "v2.0"}))
    np.testing.assert_array_equal(LeRobotReader(root)[2].action, drawn.numbers(2, "action"))


def test_missing_videos_and_too_short_ones_are_named(tmp_path):
    root = shutil.copytree(RECORDINGS / "v2.1-video", tmp_path / "set")
    folder = root / "videos/chunk-000/observation.images.wrist"
    shutil.copy(folder / "episode_000000.mp4", folder / "episode_000003.mp4")  # 7 frames for 15
    (folder / "episode_000002.mp4").unlink()
    reader = LeRobotReader(root)
    with pytest.raises(FileNotFoundError, match=r"wrist/episode_000002\.mp4 is missing"):
        reader[2]
    with pytest.raises(ValueError, match=r"episode 3, camera 'wrist'.*000003\.mp4 has 7 frames, the metadata needs 15"):
        reader[3]
    with pytest.warns(UserWarning, match="2 of 4 episodes are broken"):
        lenient = LeRobotReader(root, strict=False)
    assert [problem.episode for problem in lenient.problems] == [2, 3] and len(lenient) == 2
    assert drawn.read(lenient[1].images["wrist"][5]) == (1, 1, 5)


def test_readers_travel_to_other_processes(reader):
    import pickle

    reader[0]
    copy = pickle.loads(pickle.dumps(reader))
    np.testing.assert_array_equal(copy[3].action, reader[3].action)


def edit(path):
    """Another number in it, and not a byte more."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, (1, 1))


@pytest.mark.parametrize("name", ["v2.1-images", "v3.0-video"])
def test_the_fingerprint_follows_the_bytes_of_tables_and_not_the_time(tmp_path, monkeypatch, name):
    """Recordings without checksums: an edit in place shows, and a copy keeps caches and features."""
    monkeypatch.setenv("SELFALIGN_CACHE", str(tmp_path / "cache"))
    here, there = (shutil.copytree(RECORDINGS / name, tmp_path / place / "set") for place in ("here", "there"))
    for path in there.rglob("*.*"):
        os.utime(path, (1, 1))
    first = LeRobotReader(here).fingerprint
    assert LeRobotReader(there).fingerprint == first
    edit(sorted(here.glob("data/**/*.parquet"))[-1])
    changed = LeRobotReader(here).fingerprint
    assert changed != first
    with monkeypatch.context() as patch:
        patch.setattr(checksums, "_weigh", lambda path: pytest.fail(f"{path} was read again"))
        assert LeRobotReader(here).fingerprint == changed and LeRobotReader(there).fingerprint == first
    monkeypatch.setenv("SELFALIGN_CACHE", str(tmp_path / "elsewhere"))
    assert LeRobotReader(here).fingerprint == changed
