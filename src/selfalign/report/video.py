"""Films of rollouts as small GIFs (Pillow) or MP4s (PyAV): panels with captions, beside and below one another."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from selfalign.bench.rollout import Outcome
from selfalign.model.files import write_atomically

Film = list[Image.Image]
"""Pictures of one size, in order."""

INK, PAPER = (32, 33, 36), (255, 255, 255)
SUCCESS, FAILURE = (30, 142, 62), (217, 48, 37)
_HOLD = 6
"""Frames for which an episode's end stays on."""


def panel(outcome: Outcome, header: str, *, hold: int = _HOLD) -> Film:
    """An episode with a line above (`header`) and below (its instruction), framed at its end in green or red.

    Raises:
        ValueError: the episode was not filmed.
    """
    if not outcome.frames:
        raise ValueError(f"the episode {outcome.instruction!r} was not filmed; ask for video_episodes in the rollout")
    film = [_captioned(frame, header, outcome.instruction, None) for frame in outcome.frames]
    verdict, colour = ("done", SUCCESS) if outcome.success else ("failed", FAILURE)
    last = _captioned(outcome.frames[-1], header, f"{outcome.instruction}: {verdict}", colour)
    return film[:-1] + [last] * (hold + 1)


def _captioned(frame: np.ndarray, header: str, footer: str, colour: tuple[int, int, int] | None) -> Image.Image:
    picture = Image.fromarray(np.ascontiguousarray(frame))
    width, height = picture.size
    strip = max(14, round(width * 0.12))
    canvas = Image.new("RGB", (width, height + 2 * strip), PAPER)
    canvas.paste(picture, (0, strip))
    draw = ImageDraw.Draw(canvas)
    _centred(draw, header, width, strip / 2, strip, INK)
    _centred(draw, footer, width, height + 1.5 * strip, strip, colour or INK)
    if colour is not None:
        draw.rectangle((0, strip, width - 1, strip + height - 1), outline=colour, width=max(2, width // 40))
    return canvas


def _centred(draw: ImageDraw.ImageDraw, text: str, width: int, y: float, strip: int, colour: tuple[int, ...]) -> None:
    """One line, as large as fits in width and strip."""
    size = round(strip * 0.7)
    while size > 7 and draw.textlength(text, font=ImageFont.load_default(size)) > width - 4:
        size -= 1
    draw.text((width / 2, y), text, fill=colour, font=ImageFont.load_default(size), anchor="mm")


def beside(films: Sequence[Film], *, gap: int = 8) -> Film:
    """Films from left to right; a shorter one stays on its last picture."""
    return _together(films, gap, across=True)


def below(films: Sequence[Film], *, gap: int = 8) -> Film:
    """Films from top to bottom; a shorter one stays on its last picture."""
    return _together(films, gap, across=False)


def _together(films: Sequence[Film], gap: int, across: bool) -> Film:
    if not films or not all(films):
        raise ValueError("there is no film to put together, or one without pictures")
    axis = 0 if across else 1
    extent = sum(film[0].size[axis] for film in films) + gap * (len(films) - 1)
    other = max(film[0].size[1 - axis] for film in films)
    result = []
    for t in range(max(map(len, films))):
        canvas = Image.new("RGB", (extent, other) if across else (other, extent), PAPER)
        start = 0
        for film in films:
            picture = film[min(t, len(film) - 1)]
            canvas.paste(picture, (start, 0) if across else (0, start))
            start += picture.size[axis] + gap
        result.append(canvas)
    return result


def gif_bytes(film: Film, *, fps: float = 10.0, max_bytes: int | None = None) -> bytes:
    """The film as a GIF that repeats for ever.

    One palette for all frames and no dithering: still parts then cost nothing. Where `max_bytes` is given, colours and
    then pixels are given up until it fits.

    Raises:
        ValueError: no pictures, or the film is too long to fit at any quality.
    """
    if not film:
        raise ValueError("a film needs at least one picture")
    for scale, colours in ((1.0, 128), (1.0, 64), (1.0, 32), (0.8, 32), (0.6, 32), (0.45, 24)):
        data = _encode_gif(film, fps, scale, colours)
        if max_bytes is None or len(data) <= max_bytes:
            return data
    raise ValueError(f"{len(film)} pictures of {film[0].size} do not fit into {max_bytes} bytes; film fewer episodes")


def _encode_gif(film: Film, fps: float, scale: float, colours: int) -> bytes:
    if scale != 1.0:
        size = round(film[0].width * scale), round(film[0].height * scale)
        film = [picture.resize(size, Image.Resampling.LANCZOS) for picture in film]
    samples = film[:: max(1, len(film) // 8)] + [film[-1]]
    sheet = Image.fromarray(np.concatenate([np.asarray(picture) for picture in samples]))
    # Small things must keep their colour (a cube is known by it), so the palette covers the range, not the majority.
    palette = sheet.quantize(colours, method=Image.Quantize.MAXCOVERAGE, kmeans=2)
    frames = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in film]
    buffer = io.BytesIO()
    frames[0].save(
        buffer, "GIF", save_all=True, append_images=frames[1:], duration=round(1000 / fps), loop=0, optimize=False
    )
    return buffer.getvalue()


def save_film(film: Film, path: str | Path, *, fps: float = 10.0, max_bytes: int | None = None) -> Path:
    """Writes a `.gif` or an `.mp4`, atomically.

    Raises:
        ValueError: another suffix, or what `gif_bytes` refuses.
        ImportError: an mp4 without PyAV.
    """
    path = Path(path)
    encoders: dict[str, Callable[[], bytes]] = {
        ".gif": lambda: gif_bytes(film, fps=fps, max_bytes=max_bytes),
        ".mp4": lambda: _mp4_bytes(film, fps),
    }
    if path.suffix not in encoders:
        raise ValueError(f"a film is a .gif or an .mp4, got {path.name}")
    data = encoders[path.suffix]()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda partial: partial.write_bytes(data))
    return path


def _mp4_bytes(film: Film, fps: float) -> bytes:
    try:
        import av
    except ImportError as error:
        raise ImportError("an .mp4 needs PyAV: pip install 'selfalign[lerobot]', or choose a .gif") from error
    buffer = io.BytesIO()
    # H.264 with chroma at half size takes even sizes only.
    width, height = (side + side % 2 for side in film[0].size)
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("h264", rate=round(fps))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for picture in film:
            canvas = Image.new("RGB", (width, height), PAPER)
            canvas.paste(picture, (0, 0))
            container.mux(stream.encode(av.VideoFrame.from_image(canvas)))
        container.mux(stream.encode(None))
    return buffer.getvalue()
