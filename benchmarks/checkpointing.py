"""What gradient checkpointing saves and costs, for docs/gradient_checkpointing.md.

    python benchmarks/checkpointing.py --out benchmarks/results/checkpointing.json

Small random models, seconds on one core. Bytes and FLOPs are counted, not timed.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import tyro
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from selfalign.model.config import VLAConfig
from selfalign.model.policy import VLA
from selfalign.model.streams import StreamConfig
from selfalign.model.ttt import TTTConfig
from selfalign.model.vision import KeypointTowerConfig
from selfalign.provenance import Stopwatch, provenance, write_json
from selfalign.report import figures
from selfalign.train.recompute import recompute_blocks
from selfalign.types import ActionChunk, Observation, Transition

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEPTHS = (2, 4, 8)
BATCH = 4


@dataclass(frozen=True)
class Config:
    """Where the figure and its numbers go."""

    figure: Path = Path(__file__).parents[1] / "docs/assets/checkpointing.svg"
    out: Path | None = None


def small_model(depth: int) -> VLA:
    heads: dict[str, Any] = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 16}
    expert = StreamConfig(64, 256, depth=depth, **heads)
    tower = KeypointTowerConfig(image_size=16, channels=(8, 8, 8), named=3, free=1, grid=2, feature_dim=4)
    sizes = {"vocab_size": 40, "state_dim": 5, "action_dim": 4, "action_horizon": 8}
    torch.manual_seed(0)
    return VLA(VLAConfig(replace(expert, width=96), expert, expert, ttt=TTTConfig(2, 16), vision=tower, **sizes))


def batch(model: VLA) -> Transition:
    config, side = model.config, model.config.image_size
    observation = Observation(
        images={camera: torch.rand(BATCH, 3, side, side) * 2 - 1 for camera in config.cameras},
        image_masks={camera: torch.ones(BATCH, dtype=torch.bool) for camera in config.cameras},
        state=torch.randn(BATCH, config.state_dim),
        tokens=torch.ones(BATCH, 12, dtype=torch.long),
        token_mask=torch.ones(BATCH, 12, dtype=torch.bool),
    )
    actions = ActionChunk(torch.randn(BATCH, config.action_horizon, config.action_dim))
    return Transition(observation, actions, torch.randn(BATCH, *model.feature_mean.shape))


def measure(model: VLA) -> tuple[float, float]:
    """(MB that one training step keeps for its backward pass, GFLOP of the step).

    Tensors that share memory count once, and parameters do not count: they are there anyway.
    """
    kept: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    alive = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # so that no address is used twice
        return tensor

    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            total = model.losses(batch(model)).total
        held = sum(kept.values())
        total.backward()
    return held / 1e6, counter.get_total_flops() / 1e9


Measured = dict[bool, list[tuple[float, float]]]
"""By whether blocks are checkpointed: what `measure` gives for each depth."""


def figure(found: Measured) -> "Figure":
    """Both over depth, with and without."""
    drawn, axes = figures.new_figure(1, 2, 9, 3.6)
    for name, on, colour in (("as it is", False, figures.COLOURS[0]), ("checkpointed", True, figures.COLOURS[1])):
        for axis, values in zip(axes, zip(*found[on], strict=True), strict=True):
            axis.plot(DEPTHS, values, "o-", color=colour, label=name)
    for axis, what in zip(axes, ("MB kept for the backward pass", "GFLOP of a training step"), strict=True):
        axis.set_xlabel("layers")
        axis.set_ylabel(what)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False, fontsize=9)
    return drawn


def main(config: Config) -> None:
    torch.set_num_threads(1)
    watch = Stopwatch()
    found = {on: [measure(recompute_blocks(small_model(depth), on)) for depth in DEPTHS] for on in (False, True)}
    config.figure.write_text(figures.svg(figure(found)), encoding="utf-8")
    results = []
    for depth, (plain, work), (less, more) in zip(DEPTHS, found[False], found[True], strict=True):
        told = {"megabytes": plain, "gflop": work, "checkpointed_megabytes": less, "checkpointed_gflop": more}
        results.append({"layers": depth, **told})
        print(f"{depth} layers: {plain:.1f} -> {less:.1f} MB kept ({less / plain:.0%}), {more / work - 1:+.0%} FLOP")
    if config.out is not None:
        write_json(config.out, {"settings": {"batch": BATCH}, "results": results, **provenance(watch.seconds)})
    print(config.figure)


if __name__ == "__main__":
    main(tyro.cli(Config))
