import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfalign.bench.rollout import Outcome
from selfalign.report.video import FAILURE, SUCCESS, below, beside, gif_bytes, panel, save_film


def outcome(success: bool, frames: int = 5, size: int = 80, seed: int = 0) -> Outcome:
    """Patchwork, as flat as a rendered scene."""
    patches = np.random.default_rng(seed).integers(0, 255, (frames, 10, 10, 3), np.uint8)
    pictures = patches.repeat(-(-size // 10), axis=1).repeat(-(-size // 10), axis=2)[:, :size, :size]
    return Outcome("reach the red cube", success, -0.1, tuple(pictures))


def test_panel_holds_its_end_in_the_colour_of_the_outcome():
    for success, colour in ((True, SUCCESS), (False, FAILURE)):
        film = panel(outcome(success), "before", hold=3)
        assert len(film) == 5 + 3
        height = film[0].height
        assert film[-1].getpixel((0, height // 2)) == colour
        assert film[0].getpixel((0, height // 2)) not in (SUCCESS, FAILURE)


def test_panel_needs_a_film():
    with pytest.raises(ValueError, match="was not filmed"):
        panel(Outcome("reach the red cube", True, 0.0), "before")


def test_films_beside_and_below_wait_for_the_longest():
    short, long = panel(outcome(True, 3), "a", hold=0), panel(outcome(False, 6), "b", hold=0)
    both = beside([short, long], gap=4)
    assert len(both) == 6
    assert both[0].size == (80 + 4 + 80, short[0].height)
    assert np.array_equal(np.asarray(both[5])[:, :80], np.asarray(short[-1]))
    assert below([short, long], gap=4)[0].size == (80, 2 * short[0].height + 4)
    with pytest.raises(ValueError, match="no film"):
        beside([])


def test_gif_has_every_frame_and_keeps_within_its_size():
    film = panel(outcome(True, 12, size=120), "before", hold=0)
    free = gif_bytes(film)
    image = Image.open(io.BytesIO(free))
    assert image.n_frames == 12
    assert image.info["duration"] == 100
    small = gif_bytes(film, max_bytes=len(free) // 2)
    assert len(small) <= len(free) // 2
    with pytest.raises(ValueError, match="do not fit"):
        gif_bytes(film, max_bytes=100)


def test_a_small_thing_keeps_its_colour_when_colours_are_few():
    shades = np.linspace(60, 200, 100 * 100).reshape(100, 100)
    frame = np.stack([shades, 0.6 * shades, shades], axis=-1).astype(np.uint8)
    frame[40:46, 40:46] = yellow = (220, 200, 30)
    film = [Image.fromarray(frame)] * 3
    small = gif_bytes(film, max_bytes=len(gif_bytes(film)) - 1)  # 64 colours or fewer
    shown = np.asarray(Image.open(io.BytesIO(small)).convert("RGB"))[43, 43].astype(int)
    assert np.abs(shown - yellow).max() < 30


def test_save_film_by_suffix(tmp_path: Path):
    film = panel(outcome(True, 4, size=63), "before", hold=0)
    assert Image.open(save_film(film, tmp_path / "new" / "a.gif")).n_frames == 4
    av = pytest.importorskip("av")
    with av.open(str(save_film(film, tmp_path / "a.mp4"))) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 4
    assert np.abs(frames[0][:63, :63].astype(float).mean() - np.asarray(film[0])[:63].mean()) < 8
    with pytest.raises(ValueError, match=r"\.gif or an \.mp4"):
        save_film(film, tmp_path / "a.avi")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "new"]
