"""A data set as one HTML page: what `selfalign inspect --data` says, with plots and pictures."""

import base64
import html
import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from selfalign.data.episodes import Episode
from selfalign.data.schema import ACTION, STATE
from selfalign.data.sources import SourceData
from selfalign.data.summary import ColumnSummary, DataSummary

SHOWN = 3
"""Episodes whose course and pictures are drawn."""
STRIP, HEIGHT = 8, 96
"""Pictures of an episode in a row, and their height."""
COLOURS = ("#1a73e8", "#d93025", "#1e8e3e", "#f29900", "#9334e6", "#12a4af", "#e52592", "#5f6368")


def data_page(source: SourceData, summary: DataSummary, title: str) -> str:
    """The page; nothing beside it is needed.

    Args:
        source: pictures of its first episodes, evenly chosen, are decoded.
        summary: of the source.
        title: heading.
    """
    chosen = np.unique(np.linspace(0, len(source) - 1, SHOWN).round().astype(int)).tolist()
    columns = "".join(_column(column) for column in summary.columns)
    names = {column.column: column.names for column in summary.columns}
    episodes = "".join(_episode(i, episode, names) for i, episode in zip(chosen, source.episodes(chosen), strict=True))
    bodies = "".join(
        f"<tr><td>{html.escape(b.name)}</td><td>{b.play:,}</td><td>{b.demonstrations:,}</td><td>{b.frames:,}</td></tr>"
        for b in summary.bodies
    )
    tasks = "".join(f"<li>{html.escape(task)} <small>{count:,}</small></li>" for task, count in summary.tasks)
    cameras = ", ".join(f"{html.escape(c.name)} {c.width}x{c.height} ({c.stored})" for c in summary.cameras)
    return _PAGE.format(
        title=html.escape(title),
        facts=f"{len(summary.lengths):,} episodes ({summary.play:,} of play), {summary.frames:,} frames at "
        f"{summary.fps:g} Hz, {summary.seconds / 60:.1f} minutes; {summary.lengths.min()} to {summary.lengths.max()} "
        f"frames an episode. Cameras: {cameras or 'none'}.",
        bodies=bodies,
        tasks=tasks or "<li>none: play only</li>",
        columns=columns,
        episodes=episodes,
    )


def _column(column: ColumnSummary) -> str:
    if column.stats is None:
        return f"<h2>{column.column}</h2><p>No frame has finite numbers.</p>"
    stats = column.stats
    cells = "".join(
        f"<figure>{_histogram(column.histogram[i])}<figcaption>{html.escape(name)}<br>{stats.min[i]:.4g} to "
        f"{stats.max[i]:.4g}, mean {stats.mean[i]:.4g}</figcaption></figure>"
        for i, name in enumerate(column.names)
    )
    broken = f"<p>{column.broken:,} frames with NaN or infinity are left out.</p>" if column.broken else ""
    return f"<h2>{column.column}</h2>{broken}<div class='grid'>{cells}</div>"


def _histogram(counts: Sequence[int] | np.ndarray) -> str:
    most, step = max(int(np.max(counts)), 1), 160 / len(counts)
    bars = "".join(
        f'<rect x="{i * step:.1f}" y="{60 - 60 * int(n) / most:.1f}" width="{step - 1:.1f}" '
        f'height="{60 * int(n) / most:.1f}"/>'
        for i, n in enumerate(counts)
    )
    return f'<svg viewBox="0 0 160 61">{bars}<line x1="0" y1="60.5" x2="160" y2="60.5"/></svg>'


def _episode(index: int, episode: Episode, names: dict[str, tuple[str, ...]]) -> str:
    plots = "".join(
        f"<figure>{_traces(values)}<figcaption>{column}: {_legend(names[column])}</figcaption></figure>"
        for column, values in ((STATE, episode.state), (ACTION, episode.action))
    )
    strips = "".join(
        f'<figure><img alt="{html.escape(camera)}" src="{_strip(frames)}"><figcaption>{html.escape(camera)}'
        "</figcaption></figure>"
        for camera, frames in episode.images.items()
    )
    told = html.escape(episode.task) if episode.task else "play"
    return f"<h2>Episode {index}: {told}, {len(episode)} frames</h2>{strips}<div class='pair'>{plots}</div>"


def _traces(values: Float[np.ndarray, "T D"], width: int = 460, height: int = 150) -> str:
    """Every dimension over time, on one scale."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    span = high - low or 1.0
    x = np.linspace(0, width, len(values))
    lines = ""
    for dim in range(values.shape[1]):
        y = height - height * (values[:, dim] - low) / span
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True) if np.isfinite(b))
        lines += f'<polyline points="{points}" style="stroke:{COLOURS[dim % len(COLOURS)]}"/>'
    scale = f'<text x="2" y="11">{high:.3g}</text><text x="2" y="{height - 3}">{low:.3g}</text>'
    return f'<svg viewBox="0 0 {width} {height}">{lines}{scale}</svg>'


def _legend(names: Sequence[str]) -> str:
    return " ".join(
        f'<span style="color:{COLOURS[i % len(COLOURS)]}">{html.escape(name)}</span>' for i, name in enumerate(names)
    )


def _strip(frames: UInt8[np.ndarray, "T H W 3"]) -> str:
    """Some frames side by side, as a picture inside the page."""
    rows = np.linspace(0, len(frames) - 1, min(STRIP, len(frames))).round().astype(int)
    width = max(1, round(HEIGHT * frames.shape[2] / frames.shape[1]))
    small = [np.asarray(Image.fromarray(frames[row]).resize((width, HEIGHT))) for row in rows]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(small, axis=1)).save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
body {{ margin: 0 auto; max-width: 1040px; padding: 32px 20px; font: 15px/1.5 system-ui, sans-serif; color: #202124; }}
h1 {{ font-size: 24px; }} h2 {{ font-size: 17px; margin: 28px 0 8px; }}
table {{ border-collapse: collapse; }} td, th {{ padding: 2px 14px 2px 0; text-align: right; }}
td:first-child, th:first-child {{ text-align: left; }}
figure {{ margin: 0; }} figcaption, small {{ color: #5f6368; font-size: 12px; }} img {{ width: 100%; }}
.grid {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 14px; }}
.pair {{ display: grid; grid-template-columns: 1fr 1fr; gap: 18px; margin-top: 8px; }}
svg {{ width: 100%; }} rect {{ fill: #1a73e8; }} line {{ stroke: #dadce0; }}
polyline {{ fill: none; stroke-width: 1.5; }} text {{ font-size: 11px; fill: #5f6368; }}
</style></head><body>
<h1>{title}</h1><p>{facts}</p>
<table><tr><th>robot</th><th>play</th><th>demonstrations</th><th>frames</th></tr>{bodies}</table>
<h2>Tasks</h2><ul>{tasks}</ul>
{columns}
{episodes}
</body></html>
"""
