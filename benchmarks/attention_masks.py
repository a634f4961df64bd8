"""Who sees whom in the alignment suffix, and what happens when perception sees both blocks: docs/attention_masks.md.

    python benchmarks/attention_masks.py --figure docs/assets/attention_masks.svg \\
        --out benchmarks/results/attention_leak.json

A small random model on noise, less than a minute on one core.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from selfalign.model import masks
from selfalign.model.alignment import AlignmentInputs, AlignmentLayout
from selfalign.model.config import VLAConfig
from selfalign.model.losses import ALIGNMENT
from selfalign.model.policy import VLA
from selfalign.model.streams import StreamConfig
from selfalign.model.ttt import TTTConfig
from selfalign.model.vision import KeypointTowerConfig
from selfalign.provenance import Stopwatch, provenance, write_json
from selfalign.types import ActionChunk, Observation, Transition

HALF = 0.5
"""Flow time of the training: there, x_t says nothing about the velocity when the label is noise, so no policy without
its label is better than 2, the velocity's variance."""

BATCH = 32


OpenPerception = partial(AlignmentLayout, open_perception=True)
"""The layout with a perception token that sees both blocks."""

LAYOUTS: dict[str, Callable[..., AlignmentLayout]] = {
    "perception sees itself": AlignmentLayout,
    "perception sees both blocks": OpenPerception,
}


@dataclass(frozen=True)
class Config:
    """What to make."""

    figure: Path | None = None
    """SVG file of the masks."""
    out: Path | None = None
    """JSON file of the measured leak."""
    steps: int = 400
    """Of training on labels that are noise."""


# ---- what the masks say --------------------------------------------------------------------------------------------


def reach(mask: Tensor, layers: int) -> Tensor:
    """Whose input reaches whom through so many layers: the mask's boolean power."""
    result = torch.eye(len(mask), dtype=torch.bool)
    for _ in range(layers):
        result = (mask.float() @ result.float()) > 0
    return result


def leak(layout: AlignmentLayout) -> Tensor:
    """Where a row would read its own label: dynamics the clean next observation, inverse dynamics the clean actions."""
    cells = torch.zeros(layout.length, layout.length, dtype=torch.bool)
    cells[layout.dynamics, layout.inverse_next] = True
    cells[layout.inverse, layout.dynamics_actions] = True
    return cells


# ---- what a model does ---------------------------------------------------------------------------------------------


def small_model(layout: Callable[..., AlignmentLayout], depth: int) -> VLA:
    heads: dict[str, Any] = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8}
    expert = StreamConfig(32, 64, depth=depth, **heads)
    tower = KeypointTowerConfig(image_size=16, channels=(8, 8, 8), named=3, free=1, grid=2, feature_dim=4)
    sizes = {"vocab_size": 40, "state_dim": 5, "action_dim": 4, "action_horizon": 6}
    ttt = TTTConfig(num_heads=2, head_dim=8)
    torch.manual_seed(0)
    model = VLA(VLAConfig(replace(expert, width=24), expert, expert, ttt=ttt, vision=tower, **sizes))
    model.layout = layout(model.layout.horizon, model.layout.next_tokens)
    return model


def noise_batch(model: VLA, size: int) -> Transition:
    """Everything drawn by itself: nothing but its label tells what a loss asks for."""
    config, side = model.config, model.config.image_size
    observation = Observation(
        images={camera: torch.rand(size, 3, side, side) * 2 - 1 for camera in config.cameras},
        image_masks={camera: torch.ones(size, dtype=torch.bool) for camera in config.cameras},
        state=torch.randn(size, config.state_dim),
        tokens=torch.ones(size, 1, dtype=torch.long),
        token_mask=torch.ones(size, 1, dtype=torch.bool),
    )
    actions = ActionChunk(torch.randn(size, config.action_horizon, config.action_dim))
    return Transition(observation, actions, torch.randn(size, *model.feature_mean.shape))


def gradient(layout: Callable[..., AlignmentLayout], depth: int) -> float:
    """What dynamics' output takes from the clean next observation, over what it takes from the noisy one (norms)."""
    model = small_model(layout, depth)
    batch = noise_batch(model, 8)
    state, actions, clean = batch.observation.state, batch.actions.values, batch.next_features
    assert clean is not None
    label, noisy = (torch.randn_like(clean).requires_grad_() for _ in range(2))
    inputs = AlignmentInputs(state, actions, noisy, label, torch.randn_like(actions))
    timed = model.time[ALIGNMENT](model.alignment.embed(inputs), torch.full((len(state),), HALF))
    prefix, mask = model.prefix(batch.observation), model.layout.mask()
    out = model.mixture.suffix(ALIGNMENT, timed.tokens, timed.cond, mask, prefix, model.prior())
    predicted = model.alignment.velocities(out.tokens).next_features
    of_label, of_noisy = torch.autograd.grad(predicted.square().sum(), [label, noisy])
    return float(of_label.norm() / of_noisy.norm())


def trained(layout: Callable[..., AlignmentLayout], steps: int) -> dict[str, float]:
    """Losses after training on labels that are noise, at flow time 0.5: the mean of the last tenth."""
    model, losses = small_model(layout, depth=3), []
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with torch.no_grad():
        prefix = model.prefix(noise_batch(model, BATCH).observation)
    for step in range(steps):
        batch = noise_batch(model, BATCH)
        parts = model.losses(batch, time=torch.full((BATCH,), HALF), parts=(ALIGNMENT,), prefix=prefix)
        optimizer.zero_grad()
        parts.total.backward()
        optimizer.step()
        if step >= 0.9 * steps:
            losses.append(parts.scalars())
    return {name: sum(row[name] for row in losses) / len(losses) for name in ("perception", "dynamics", "inverse")}


# ---- the figure ----------------------------------------------------------------------------------------------------

CELL, GAP, LABELS = 16, 56, 112
COLOURS = {"seen": "#4c78a8", "leak": "#d62728", "none": "#eeeeee"}


def figure() -> str:
    """SVG: the whole mask, then whose inputs reach whom through two layers with perception open and as it is."""
    layout = AlignmentLayout(horizon=2, next_tokens=2)
    names = ["perception", *2 * ["d: action"], *2 * ["d: noisy next"], *2 * ["i: next"], *2 * ["i: noisy action"]]
    panels = [panel("one layer: who sees whom", *joint(layout, names), None)]
    for title, kind in (("two layers, perception open", OpenPerception), ("two layers, as it is", AlignmentLayout)):
        seen = reach(kind(2, 2).mask(), layers=2)
        panels.append(panel(title, seen, names, leak(layout)))
    x, parts = 0, []
    for drawn, width in panels:
        parts.append(f'<g transform="translate({x},0)">{drawn}</g>')
        x += width + GAP
    height = LABELS + 24 + CELL * 18
    style = "text{font:11px sans-serif;fill:#333}.t{font-weight:bold}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {x} {height}" width="{x}" height="{height}">'
        f'<style>{style}</style><rect width="100%" height="100%" fill="white"/>' + "\n".join(parts) + "</svg>\n"
    )


def joint(layout: AlignmentLayout, names: list[str]) -> tuple[Tensor, list[str]]:
    """The mask of prefix, action suffix and alignment suffix together."""
    prefix, action = ["image", "image", "word", "padding"], ["state", "action", "action"]
    valid = torch.tensor([[name != "padding" for name in prefix]])
    starts = torch.tensor([True, True, False])
    own = torch.block_diag(masks.block_mask(starts).float(), layout.mask().float()).bool()
    of_prefix = torch.cat([masks.prefix_self_mask(valid)[0], torch.zeros(4, len(own), dtype=torch.bool)], dim=1)
    return torch.cat([of_prefix, masks.suffix_mask(valid, own)[0]]), [*prefix, *action, *names]


def panel(title: str, seen: Tensor, names: list[str], forbidden: Tensor | None) -> tuple[str, int]:
    """One matrix with its labels, and its width."""
    parts = [f'<text class="t" x="{LABELS}" y="14">{title}</text>']
    for i, name in enumerate(names):
        at = LABELS + 24 + CELL * i
        parts.append(f'<text x="{LABELS - 4}" y="{at + 12}" text-anchor="end">{name}</text>')
        place = f"translate({LABELS + CELL * i + 12},{LABELS + 18}) rotate(-90)"
        parts.append(f'<text transform="{place}">{name}</text>')
        for j in range(len(names)):
            leaks = forbidden is not None and bool(seen[i, j] & forbidden[i, j])
            colour = COLOURS["leak" if leaks else "seen" if seen[i, j] else "none"]
            box = f'x="{LABELS + CELL * j}" y="{at}" width="{CELL - 1}" height="{CELL - 1}"'
            parts.append(f'<rect {box} fill="{colour}"/>')
    return "".join(parts), LABELS + CELL * len(names)


def main(config: Config) -> None:
    torch.set_num_threads(1)
    watch = Stopwatch()
    if config.figure is not None:
        config.figure.write_text(figure())
    results = {
        name: {
            "gradient of the label by depth": {str(depth): gradient(kind, depth) for depth in (1, 2, 3, 4)},
            "losses on noise": trained(kind, config.steps),
        }
        for name, kind in LAYOUTS.items()
    }
    for name, row in results.items():
        print(f"{name}: {row}")
    if config.out is not None:
        write_json(config.out, {"settings": {"steps": config.steps}, "results": results, **provenance(watch.seconds)})


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
