"""Videos that we write: read back by time, and by OpenCV."""

import threading

import av
import cv2
import numpy as np
import pytest

from data import drawn
from selfalign.data.episodes import Episode
from selfalign.data.lerobot import LeRobotReader, LeRobotWriter
from selfalign.data.video import DecoderCache, VideoCodec, VideoFile, VideoWriter

LENGTHS = drawn.LENGTHS


def episode(index):
    images = {
        c: np.stack([drawn.draw(i, index, t) for t in range(LENGTHS[index])]) for i, c in enumerate(drawn.CAMERAS)
    }
    numbers = {
        name: drawn.numbers(index, f"observation.{name}" if name == "state" else name) for name in ("state", "action")
    }
    return Episode(images=images, **numbers, task=drawn.task(index), fps=drawn.FPS)


@pytest.fixture
def root(tmp_path):
    with LeRobotWriter(tmp_path / "set", fps=drawn.FPS, video=True, video_file_mb=0) as writer:
        for index in range(4):
            if index == 3:  # the first three share a file as soon as the limit allows it
                writer._videos.file_bytes = 2**30
            writer.add_episode(episode(index))
    return tmp_path / "set"


def test_what_we_write_is_read(root):
    reader = LeRobotReader(root)
    assert reader.info.features["observation.images.scene"].is_video and reader.info.video_path is not None
    for index, found in enumerate(reader.episodes()):
        expected = episode(index)
        np.testing.assert_array_equal(found.action, expected.action)
        for number, camera in enumerate(drawn.CAMERAS):
            assert [drawn.read(i) for i in found.images[camera]] == [(number, index, t) for t in range(LENGTHS[index])]
            assert np.abs(found.images[camera].astype(int) - expected.images[camera]).mean() < 4


def test_opencv_reads_the_files_to_the_frame(root):
    reader = LeRobotReader(root)
    for meta in reader.metadata:
        span = meta.videos["wrist"]
        capture = cv2.VideoCapture(str(root / span.file))
        assert capture.get(cv2.CAP_PROP_FPS) == drawn.FPS
        frames = []
        while (read := capture.read())[0]:
            frames.append(read[1])
        first = round(span.start * drawn.FPS)
        found = [drawn.read(image) for image in frames[first : first + meta.length]]
        assert found == [(1, meta.index, t) for t in range(meta.length)]


def test_metadata_is_lerobots(root):
    info = LeRobotReader(root).info.to_dict()
    assert info["video_path"] == "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    video = info["features"]["observation.images.scene"]
    assert video["dtype"] == "video" and video["info"]["video.codec"] == "h264" and video["info"]["video.fps"] == 10
    assert not list(root.glob("images")) and len(list(root.glob("videos/observation.images.scene/*/*.mp4"))) > 1


@pytest.mark.parametrize("options", [{"g": "2", "bf": "0"}, {"g": "12", "bf": "3"}, {"g": "250", "bf": "2"}])
def test_random_access_is_exact_for_any_order_of_frames(tmp_path, options):
    """Also where key frames are rare and frames are stored out of order."""
    frames = np.stack([drawn.draw(0, 1, t) for t in range(60)])
    writer = VideoWriter(tmp_path / "v.mp4", 30, *drawn.SIZE, VideoCodec(options={"crf": "18", **options}))
    writer.write(frames)
    writer.close()
    video, rng = VideoFile(tmp_path / "v.mp4"), np.random.default_rng(0)
    assert len(video.times) == 60
    for _ in range(40):
        wanted = rng.integers(60, size=int(rng.integers(1, 5)))
        found = video.frames(wanted / 30 + rng.uniform(-0.9e-4, 0.9e-4, len(wanted)), 1e-4)
        assert [drawn.read(image)[2] for image in found] == wanted.tolist()


def write(path, count=24, **options):
    writer = VideoWriter(path, 30, *drawn.SIZE, VideoCodec(options={"crf": "18", **options}))
    writer.write(np.stack([drawn.draw(0, 1, t) for t in range(count)]))
    writer.close()
    return path


@pytest.mark.parametrize("options", [{"g": "2", "bf": "0"}, {"g": "12", "bf": "3"}])
def test_pixels_are_pyavs(tmp_path, options):
    path = write(tmp_path / "v.mp4", **options)
    with av.open(str(path)) as container:
        expected = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    np.testing.assert_array_equal(VideoFile(path).frames(np.arange(24) / 30, 1e-4), expected)


class Counting:
    """A container that counts the frames it decodes."""

    def __init__(self, container):
        self.container, self.decoded = container, 0

    def decode(self, stream):
        for frame in self.container.decode(stream):
            self.decoded += 1
            yield frame

    def __getattr__(self, name):
        return getattr(self.container, name)


def test_only_what_leads_to_a_frame_is_decoded(tmp_path):
    """From where it stands, unless a key frame lies between; then from that one."""
    video = VideoFile(write(tmp_path / "v.mp4", g="4", bf="0"))
    counting = video._container = Counting(video._container)
    for frames, decoded in (([5, 18], 2 + 3), ([19], 1), ([20], 1), ([20], 0), ([22], 2), ([21], 2), ([0, 1], 2)):
        counting.decoded = 0
        found = video.frames(np.array(frames) / 30, 1e-4)
        assert [drawn.read(image)[2] for image in found] == frames
        assert counting.decoded == decoded, frames


def test_times_between_frames_are_refused(root):
    video = VideoFile(next(root.rglob("*.mp4")))
    for time in (0.05, -0.1, 99.0, float("nan")):
        with pytest.raises(ValueError, match="has no frame at"):
            video.frames(np.array([0.0, time]), 1e-4)
    assert video.frames(np.array([0.05]), 0.06).shape == (1, *drawn.SIZE, 3)


def test_few_videos_stay_open(root):
    paths = sorted(root.rglob("*.mp4"))
    cache = DecoderCache(2)
    for path in [*paths, *paths]:
        cache.open(path)
        assert len(cache) <= 2
    assert cache.open(paths[-1]) is cache.open(paths[-1])
    with pytest.raises(ValueError, match="max_open=0"):
        DecoderCache(0)


def test_what_one_thread_reads_no_other_closes(tmp_path, monkeypatch):
    """The other one asks for another video between opening and reading, where one may be open."""
    one, two, cache = write(tmp_path / "1.mp4"), write(tmp_path / "2.mp4"), DecoderCache(1)
    opened, other = cache.open, threading.Thread(target=lambda: cache.frames(two, np.array([1 / 30]), 1e-4))

    def open_and_wait(path):
        video = opened(path)
        if path == one:
            other.start()
            other.join(0.3)
        return video

    monkeypatch.setattr(cache, "open", open_and_wait)
    found = cache.frames(one, np.array([5, 2]) / 30, 1e-4)
    assert [drawn.read(image)[2] for image in found] == [5, 2]
    other.join()
    assert len(cache) == 1


def test_a_file_is_listed_once_until_it_changes(tmp_path):
    one, two, cache = write(tmp_path / "1.mp4"), write(tmp_path / "2.mp4"), DecoderCache(1)
    first = cache.open(one)
    cache.open(two)
    again = cache.open(one)
    assert again is not first and again.index is first.index
    assert [drawn.read(image)[2] for image in again.frames(np.array([7, 3]) / 30, 1e-4)] == [7, 3]
    cache.open(two)
    write(one, count=12)
    assert len(cache.open(one).times) == 12


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match="even height and width, got 15 x 24"):
        VideoWriter(tmp_path / "v.mp4", 10, 15, 24)
    with pytest.raises(ValueError, match="no encoder 'nonesuch'"):
        LeRobotWriter(tmp_path / "set", video=VideoCodec("nonesuch"))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "v.mp4").write_bytes(b"not a video")
    with pytest.raises(ValueError, match=r"v\.mp4 is damaged or not a video"):
        VideoFile(tmp_path / "v.mp4")


def test_an_interrupted_write_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), LeRobotWriter(tmp_path / "set", fps=drawn.FPS, video=True) as writer:
        writer.add_episode(episode(0))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
