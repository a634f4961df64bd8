"""One frame and the numbers of a simulated body on their way to the model, for docs/data_pipeline.md.

python benchmarks/data_pipeline.py
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import tyro

from selfalign.data.episodes import Episode
from selfalign.data.normalize import NormStats
from selfalign.data.transforms import pad_dims, pixels_from_model, pixels_to_model, resize_with_pad
from selfalign.model.augment import Augment
from selfalign.report import figures
from selfalign.sim.bodies import sample_bodies
from selfalign.sim.record import record_play

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDE, RECORDED, DRAWS, DIMS = 64, 128, 3, 8
ROWS = slice(16, 104)
"""Of the recorded square picture, so that it is wide."""


@dataclass(frozen=True)
class Config:
    """Where the figure goes."""

    figure: Path = Path(__file__).parents[1] / "docs/assets/data_pipeline.svg"
    seed: int = 3
    """Of the body and its play."""


def pictures(episode: Episode) -> dict[str, np.ndarray]:
    """A frame as it was recorded, resized with pad, and as training may see it."""
    frame = episode.images["scene"][:1, ROWS]
    small = resize_with_pad(frame, SIDE, SIDE)
    torch.manual_seed(0)
    changed = Augment().train()(pixels_to_model(small).repeat(DRAWS, 1, 1, 1), "scene")
    drawn = {f"training, draw {i + 1}": picture for i, picture in enumerate(pixels_from_model(changed.clamp(-1, 1)))}
    return {"recorded": frame[0], "resized with pad": small[0], **drawn}


def figure(episode: Episode) -> "Figure":
    """Pictures above, actions below: in the body's units, and normalised and padded."""
    shown = pictures(episode)
    drawn, axes = figures.new_figure(2, len(shown), 11, 4.6)
    for axis, (title, picture) in zip(axes, shown.items(), strict=False):
        axis.imshow(picture)
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
    below = axes[len(shown) :]
    stats = NormStats.from_arrays(episode.state, episode.action)
    normalised = pad_dims(stats.normalize_action(episode.action), DIMS)
    titles = ("actions, the body's units", "normalised, padded to 8")
    for axis, values, title in zip(below, (episode.action, normalised), titles, strict=False):
        for i, column in enumerate(values.T):
            axis.plot(column, color=figures.COLOURS[i % len(figures.COLOURS)], linewidth=1)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("frame")
    for axis in below[2:]:
        axis.set_axis_off()
    return drawn


def main(config: Config) -> None:
    torch.set_num_threads(1)
    body = sample_bodies(1, config.seed, "source", "camera")[0]
    (episode,) = record_play(body, 1, 40, config.seed, image_size=RECORDED)
    config.figure.write_text(figures.svg(figure(episode)), encoding="utf-8")
    print(config.figure)


if __name__ == "__main__":
    main(tyro.cli(Config))
