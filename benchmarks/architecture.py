"""Which layer reads which in the model, drawn from a preset: docs/architecture.md.

python benchmarks/architecture.py --figure docs/assets/architecture.svg
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from selfalign import presets
from selfalign.model.config import VLAConfig
from selfalign.model.streams import StreamConfig

WIDE, HIGH, GAP, TOP, LEFT = 132, 40, 26, 62, 16
"""Pixels: boxes, the space between rows, and the margins above and at the left."""
STEP = WIDE + 52
COLOURS = {"vlm": "#dfe7f3", "action": "#fde3cc", "ttt": "#f7d9d9", "alignment": "#d9ecd6"}
COLUMNS = {"vlm": 0, "action": 1, "ttt": 2, "alignment": 3}
"""From left to right: both experts read the VLM, and one W stands between them."""

MARKER = (
    '<marker id="a" markerWidth="7" markerHeight="7" refX="6" refY="3" orient="auto">'
    '<path d="M0,0L6,3L0,6z" fill="#777"/></marker>'
)
"""The head of an arrow."""


@dataclass(frozen=True)
class Config:
    """What to draw."""

    figure: Path
    """SVG file."""
    preset: str = "tiny"
    """One with an alignment expert and TTT layers."""


def figure(config: VLAConfig) -> str:
    """The layers of the VLM from top to bottom; beside each, the layers of the experts that read it, and W.

    Raises:
        ValueError: a model without alignment expert.
    """
    if config.alignment is None:
        raise ValueError("the figure shows what both experts share: choose a preset with an alignment expert")
    experts = {"action": config.action, "alignment": config.alignment}
    parts = [
        _heads("vlm", "VLM", "pictures, prompt", config.vlm),
        _heads("action", "action expert", "state, noisy actions", config.action),
        _heads("alignment", "alignment expert", "play", config.alignment),
        f'<text class="t" x="{_x("ttt") + WIDE / 2}" y="20" text-anchor="middle">context W</text>',
    ]
    for depth in range(config.vlm.depth):
        readers = [name for name, expert in experts.items() if depth in expert.vlm_layers()]
        if "action" in readers:
            parts.append(_arrow(_x("vlm") + WIDE, _x("action"), _y(depth) + 10, "keys and values"))
        if "alignment" in readers:
            parts.append(_over(_x("vlm") + WIDE - 16, _x("alignment") + 16, _y(depth)))
        parts.append(_box("vlm", depth, f"layer {depth + 1}"))
        parts += [_box(name, depth, f"layer {experts[name].vlm_layers().index(depth) + 1}") for name in readers]
        if depth in config.ttt.depths(config.vlm.depth):
            ends = ((_x("ttt"), _x("action") + WIDE), (_x("ttt") + WIDE, _x("alignment")))
            parts += [_arrow(start, end, _y(depth) + 30) for start, end in ends]
            parts.append(_box("ttt", depth, "TTT layer: W1, b1"))
    bottom = _y(config.vlm.depth)
    parts += [_below("action", bottom, "actions"), _below("alignment", bottom, "losses without labels: W moves")]
    width, height = _x("alignment") + WIDE + 60, bottom + 26
    style = "text{font:12px sans-serif;fill:#333}.t{font-weight:bold}.s{font-size:10px;fill:#666}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f'<style>{style}</style><defs>{MARKER}</defs><rect width="100%" height="100%" fill="white"/>'
        + "\n".join(parts)
        + "</svg>\n"
    )


def _x(column: str) -> int:
    return LEFT + STEP * COLUMNS[column]


def _y(depth: int) -> int:
    return TOP + (HIGH + GAP) * depth


def _heads(column: str, title: str, reads: str, stream: StreamConfig) -> str:
    """What a stream is called, how wide it is, and what goes in."""
    middle = _x(column) + WIDE / 2
    lines = ((20, "t", f"{title}, {stream.width} wide"), (38, "s", reads))
    return "".join(
        f'<text class="{kind}" x="{middle}" y="{y}" text-anchor="middle">{text}</text>' for y, kind, text in lines
    )


def _box(column: str, depth: int, text: str) -> str:
    x, y = _x(column), _y(depth)
    return (
        f'<rect x="{x}" y="{y}" width="{WIDE}" height="{HIGH}" rx="6" fill="{COLOURS[column]}" stroke="#999"/>'
        f'<text x="{x + WIDE / 2}" y="{y + HIGH / 2 + 4}" text-anchor="middle">{text}</text>'
    )


def _arrow(start: int, end: int, y: int, title: str = "W") -> str:
    line = f'<line x1="{start}" y1="{y}" x2="{end}" y2="{y}" stroke="#777" marker-end="url(#a)">'
    return f"{line}<title>{title}</title></line>"


def _over(start: int, end: int, y: int) -> str:
    """An arrow from the top of one box to that of another, over what is between them."""
    path = f"M{start},{y}V{y - GAP // 2}H{end}V{y}"
    return f'<path d="{path}" fill="none" stroke="#777" marker-end="url(#a)"><title>keys and values</title></path>'


def _below(column: str, y: int, text: str) -> str:
    return f'<text x="{_x(column) + WIDE / 2}" y="{y}" text-anchor="middle">{text}</text>'


def main(config: Config) -> None:
    config.figure.write_text(figure(presets.get(config.preset)), encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
