"""The demo's report: one HTML file that needs nothing beside it, neither network nor library."""

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any

SCENARIO_WORDS = {
    "camera": ("An unseen camera", "The robot is known. The camera stands where no training camera stood."),
    "action": (
        "An unseen action frame",
        "The robot and the camera are of known kinds. What the action's numbers mean (axes, mirror, scale) is new.",
    ),
    "joint": ("Joint control in an unseen order", "Actions drive joints, in an order that no training robot had."),
    "robot": ("An unseen arm", "A UR5e. No arm like it was in the training data."),
    "all": ("Everything unseen at once", "A new arm, a new camera and a new action frame."),
}


def curve_svg(losses: Mapping[str, float | None], null: float | None, *, width: int = 420, height: int = 190) -> str:
    """The held-out play loss over alignment steps, and the null update's as a dashed line.

    Args:
        losses: step (as JSON has it, a string) to loss; None is left out.
        null: loss of the random update.
    """
    points = sorted((int(step), loss) for step, loss in losses.items() if loss is not None)
    if not points:
        return ""
    levels = [loss for _, loss in points] + ([] if null is None else [null])
    top, last = max(levels) * 1.08 or 1.0, max(points[-1][0], 1)
    left, right, up, down = 44, 10, 10, 34

    def at(step: float, loss: float) -> tuple[float, float]:
        x = left + (width - left - right) * step / last
        return round(x, 1), round(height - down - (height - up - down) * loss / top, 1)

    line = " ".join(f"{x},{y}" for x, y in (at(*point) for point in points))
    ticks = "".join(_tick(*at(last * share, 0), f"{last * share:.0f}", "middle", 0, 16) for share in (0, 0.5, 1))
    ticks += "".join(_tick(*at(0, top * share), f"{top * share:.2f}", "end", -6, 4) for share in (0, 0.5, 1))
    dashed = ""
    if null is not None:
        (x0, y), (x1, _) = at(0, null), at(last, null)
        dashed = f'<line class="null" x1="{x0}" y1="{y}" x2="{x1}" y2="{y}"/>'
        dashed += f'<text class="tick" x="{x1}" y="{y - 5}" text-anchor="end">random update of equal norm</text>'
    (x0, y0), (x1, _) = at(0, 0), at(last, 0)
    dots = "".join(f'<circle cx="{x}" cy="{y}" r="2.5"/>' for x, y in (at(*point) for point in points))
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="held-out play loss over alignment steps">'
        f'<line class="axis" x1="{x0}" y1="{y0}" x2="{x1}" y2="{y0}"/>{ticks}{dashed}'
        f'<polyline class="curve" points="{line}"/>{dots}'
        f'<text class="tick" x="{(x0 + x1) / 2}" y="{height - 2}" text-anchor="middle">alignment steps</text></svg>'
    )


def _tick(x: float, y: float, text: str, anchor: str, dx: float, dy: float) -> str:
    return f'<text class="tick" x="{x + dx}" y="{y + dy}" text-anchor="{anchor}">{text}</text>'


def bar(name: str, result: Mapping[str, Any], kind: str) -> str:
    """A success rate as a bar with its interval as a whisker."""
    value, low, high = (100 * result[key] for key in ("value", "low", "high"))
    return (
        f'<div class="bar"><span class="name">{html.escape(name)}</span><span class="track">'
        f'<span class="fill {kind}" style="width:{value:.1f}%"></span>'
        f'<span class="whisker" style="left:{low:.1f}%;width:{high - low:.1f}%"></span></span>'
        f'<span class="number">{value:.0f}&thinsp;% <small>[{low:.0f}, {high:.0f}]</small></span></div>'
    )


# ---- the demo's page -----------------------------------------------------------------------------------------------


def demo_page(result: Mapping[str, Any], films: Mapping[str, bytes]) -> str:
    """The demo's report as one HTML page.

    Args:
        result: what `report.json` holds.
        films: scenario to GIF.
    """
    cards = "\n".join(_card(row, films[row["scenario"]]) for row in result["bodies"])
    settings, made = result["settings"], result["provenance"]
    play = f"{settings['play'] * settings['play_length'] / 20:.0f} seconds"
    facts = (
        f"{settings['play']} play trajectories of {settings['play_length'] / 20:.1f} s each, {settings['episodes']} "
        f"episodes before and after in the same scenes, task: {html.escape(settings['task'])}. Intervals are Wilson's, "
        "95 %."
    )
    machine = f"{made['machine']['processor']}, {made['machine']['cores']} cores"
    footer = (
        f"<code>{html.escape(made['command'])}</code> · seed {settings['seed']} · "
        f"commit {made['commit'] or 'unknown'} · {html.escape(machine)} · {made['seconds']:.0f} s · {made['finished']}"
    )
    return _PAGE.format(style=_STYLE, play=play, facts=facts, cards=cards, footer=footer)


def _card(row: Mapping[str, Any], film: bytes) -> str:
    title, words = SCENARIO_WORDS[row["scenario"]]
    verdict, play, seconds = row["verdict"], row["play"], row["seconds"]
    accepted = verdict["accepted"]
    numbers: Sequence[tuple[str, str]] = (
        (f"{play['robot_seconds']:.0f} s", "of play, no task, no labels"),
        (f"{1000 * row['context_megabytes']:.0f} kB", "of context fitted, all else frozen"),
        (f"{seconds['align']:.0f} s", f"to align, {row['best_step']} steps"),
    )
    facts = "".join(f"<li><b>{value}</b> {words}</li>" for value, words in numbers)
    return f"""<section>
<h2>{title}</h2>
<p>{words} <span class="body">{html.escape(row["name"])}</span></p>
<div class="columns"><figure>
<img alt="Left: episodes before aligning. Right: the same scenes after." src="{_data(film)}">
<figcaption>The same scenes, before and after aligning.</figcaption></figure>
<div>{bar("before", row["success"]["before"], "bad")}{bar("after", row["success"]["aligned"], "good")}
<ul>{facts}</ul>
<p class="facts">Loss on play that was held out:</p>
{curve_svg(row["held_out_play_loss"], verdict["null"])}
<p class="verdict {"accept" if accepted else "reject"}">{html.escape(verdict["text"])}</p></div></div>
</section>"""


def _data(gif: bytes) -> str:
    return "data:image/gif;base64," + base64.b64encode(gif).decode()


_STYLE = """
:root { --ink: #202124; --soft: #5f6368; --paper: #fff; --card: #f8f9fa; --line: #dadce0; --good: #1e8e3e;
        --bad: #d93025; --curve: #1a73e8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --soft: #9aa0a6; --paper: #17181a; --card: #202124;
        --line: #3c4043; --good: #81c995; --bad: #f28b82; --curve: #8ab4f8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1040px; padding: 40px 20px; background: var(--paper); color: var(--ink);
       font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 12px; }
h2 { font-size: 20px; margin: 0; }
p { margin: 6px 0 14px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 22px; margin: 22px 0; }
ol { padding-left: 20px; }
.columns { display: grid; grid-template-columns: minmax(0, 1.1fr) minmax(0, 1fr); gap: 26px; align-items: start; }
@media (max-width: 760px) { .columns { grid-template-columns: 1fr; } }
figure { margin: 0; } img { width: 100%; border-radius: 8px; background: #fff; }
figcaption, .body, footer, .facts { color: var(--soft); font-size: 13px; }
.body { font-family: ui-monospace, monospace; }
.bar { display: grid; grid-template-columns: 56px 1fr 118px; gap: 10px; align-items: center; margin: 8px 0; }
.track { position: relative; height: 18px; background: var(--line); border-radius: 4px; }
.fill { position: absolute; inset: 0 auto 0 0; border-radius: 4px; }
.good { background: var(--good); } .bad { background: var(--bad); }
.whisker { position: absolute; top: 8px; height: 2px; background: var(--ink); opacity: .65; }
.number small { color: var(--soft); }
ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: 4px 22px; font-size: 14px; color: var(--soft); }
ul b { color: var(--ink); }
svg { width: 100%; } svg text { fill: var(--soft); font: 11px system-ui, sans-serif; }
.axis { stroke: var(--line); } .curve { fill: none; stroke: var(--curve); stroke-width: 2; }
circle { fill: var(--curve); } .null { stroke: var(--soft); stroke-dasharray: 5 4; }
.verdict { font: 13px/1.5 ui-monospace, monospace; border-left: 4px solid; padding-left: 10px; }
.accept { border-color: var(--good); } .reject { border-color: var(--bad); }
footer { margin-top: 30px; word-break: break-word; }
"""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Selfalign: before and after</title><style>{style}</style></head><body>
<h1>A frozen policy on bodies that it has never had</h1>
<p>A policy was trained on simulated robots and then frozen. Below it meets bodies that were not among them. Each body
first acts with what the policy knows (<b>before</b>). Then it moves about on its own for {play}, without a task
and without labels. A small <em>embodiment context</em> is fitted to that play, and the same policy acts again, reading
the context (<b>after</b>).</p>
<p class="facts">{facts}</p>
{cards}
<h2>How to read this</h2>
<ol><li><b>Success</b> of reaching: the gripper is within 2.5 cm of the point above the named cube when the episode
ends. (Other tasks: where the named cube is to be.)</li>
<li><b>The curve</b> is the loss on play that the context was not fitted to: does the context explain this body? The
dashed line is a random change of the context of the same size, which should not help.</li>
<li><b>The verdict</b> is what <code>selfalign align</code> says of the fit, from play alone, before any task is tried.
A rejected fit leaves the policy as it was.</li></ol>
<footer>{footer}</footer></body></html>
"""
