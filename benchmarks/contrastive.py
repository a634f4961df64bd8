"""What InfoNCE asks of contexts, by temperature: docs/contrastive_learning.md.

python benchmarks/contrastive.py
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import tyro
from torch import Tensor

from selfalign.align.contrastive import info_nce
from selfalign.report import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NEGATIVES = 4
TEMPERATURES = (0.07, 0.2, 1.0)
POSITIVE = 0.9
"""Cosine of the anchor and its positive in the figure."""


@dataclass(frozen=True)
class Config:
    """Where the figure goes."""

    figure: Path = Path(__file__).parents[1] / "docs/assets/contrastive.svg"


def at_cosine(cosine: float) -> Tensor:
    """A vector in the plane at this cosine to the anchor (1, 0)."""
    return torch.tensor([cosine, (1 - cosine**2) ** 0.5])


def loss(cosine: Tensor, temperature: float) -> Tensor:
    """InfoNCE with one negative at this cosine and the others across."""
    anchor = at_cosine(1.0)
    moving = torch.stack([cosine, (1 - cosine**2).clamp_min(1e-12).sqrt()])
    others = at_cosine(0.0).expand(NEGATIVES - 1, 2)
    negatives = torch.cat([moving[None], others])
    return info_nce(anchor[None], at_cosine(POSITIVE)[None], negatives[None], temperature)[0]


def figure() -> "Figure":
    """The loss and its pull on one negative, as it nears the anchor."""
    drawn, (left, right) = figures.new_figure(1, 2, 9, 3.6)
    cosines = np.linspace(-0.95, 0.99, 60)
    for temperature, colour in zip(TEMPERATURES, figures.COLOURS, strict=False):
        values, pulls = [], []
        for x in cosines:
            cosine = torch.tensor(float(x), requires_grad=True)
            value = loss(cosine, temperature)
            (pull,) = torch.autograd.grad(value, [cosine])
            values.append(float(value.detach()))
            pulls.append(float(pull))
        left.plot(cosines, values, color=colour, label=f"temperature {temperature}")
        right.plot(cosines, pulls, color=colour, label=f"temperature {temperature}")
    for axis, what in ((left, "InfoNCE"), (right, "its slope: the push away")):
        axis.axvline(POSITIVE, color="#999999", linestyle="--", linewidth=0.8)
        axis.set_xlabel("cosine of the anchor and one negative")
        axis.set_ylabel(what)
        axis.grid(alpha=0.3)
    left.legend(frameon=False, fontsize=9)
    left.text(POSITIVE - 0.02, left.get_ylim()[1] * 0.55, "the positive", rotation=90, ha="right", fontsize=8)
    return drawn


def main(config: Config) -> None:
    config.figure.write_text(figures.svg(figure()), encoding="utf-8")
    print(config.figure)


if __name__ == "__main__":
    main(tyro.cli(Config))
