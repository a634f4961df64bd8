"""How a gated TTT layer mixes tokens, here and in video-DiT's order, for docs/ttt_gating.md.

    python benchmarks/ttt_gating.py

A random layer on random tokens, seconds on one core.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import tyro
from torch import Tensor, nn

from selfalign.model.ttt import TTTConfig, TTTLayer
from selfalign.report import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOKENS, WIDTH, SEGMENT = 12, 16, 4
ALPHAS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)
CONFIG = TTTConfig(num_heads=2, head_dim=8, mini_batch=SEGMENT, alpha_init=0.5)


@dataclass(frozen=True)
class Config:
    """Where the figure goes."""

    figure: Path = Path(__file__).parents[1] / "docs/assets/ttt_gating.svg"


class Gated(nn.Module):
    """A TTT layer with the inner loop, and its residual through the gate."""

    def __init__(self, config: TTTConfig):
        super().__init__()
        torch.manual_seed(0)
        self.layer = TTTLayer(WIDTH, config, None)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x[None], None, self.layer.W1, self.layer.b1)[0][0]


class BothWays(Gated):
    """Video-DiT's order: forward over the sequence, gate and residual, then over the reversed sequence with the same
    layer and another gate."""

    def __init__(self, config: TTTConfig):
        super().__init__(config)
        self.backward_alpha = nn.Parameter(torch.full((WIDTH,), config.alpha_init))

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        reverse = super().forward(x.flip(0)).flip(0) - x
        return x + torch.tanh(self.backward_alpha) * reverse / torch.tanh(self.layer.alpha)


class LocalAttention(nn.Module):
    """Softmax attention within segments, as video-DiT's within three seconds, before what follows."""

    def __init__(self, after: nn.Module):
        super().__init__()
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        parts = x.unflatten(0, (-1, SEGMENT))
        weights = (parts @ parts.transpose(1, 2) / WIDTH**0.5).softmax(-1)
        return self.after(x + (weights @ parts).flatten(0, 1))


def reach(module: nn.Module) -> Tensor:
    """How much each output token changes with each input token: norms of the Jacobian's blocks `[T, T]`, log10 of the
    share of the largest."""
    x = torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))
    jacobian = torch.autograd.functional.jacobian(module, x)
    assert isinstance(jacobian, Tensor)
    norms = jacobian.norm(dim=(1, 3))
    return (norms / norms.max()).clamp_min(1e-12).log10()


def gate(alpha: float) -> tuple[float, float]:
    """Relative size of what the layer adds, and of the gradient that reaches W, against a gate that is fully open."""
    module = Gated(replace(CONFIG, meta_learning=False, alpha_init=alpha))
    x = torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))
    out = module(x)
    (gradient,) = torch.autograd.grad((out * out.detach().sign()).sum(), [module.layer.W1])
    return float((out - x).detach().norm() / x.norm()), float(gradient.norm())


def figure() -> "Figure":
    """Who reaches whom in four layers, and the gate."""
    inner = replace(CONFIG, meta_learning=True)
    layers = {
        "W an argument (default)": Gated(CONFIG),
        "inner loop, one way": Gated(inner),
        "forward, then reversed": BothWays(inner),
        "local attention before it": LocalAttention(BothWays(inner)),
    }
    drawn, axes = figures.new_figure(1, 5, 15, 3.4)
    for axis, (name, module) in zip(axes, layers.items(), strict=False):
        picture = axis.imshow(reach(module), vmin=-4, vmax=0, cmap="Blues")
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("input token")
    axes[0].set_ylabel("output token")
    bar = drawn.colorbar(picture, ax=axes[3], shrink=0.7)
    bar.set_label("log10 of the share", fontsize=8)
    added, gradients = zip(*map(gate, ALPHAS), strict=True)
    axes[4].plot(ALPHAS, added, "o-", color=figures.COLOURS[0], label="what is added / input")
    open_gate = gradients[-1]
    axes[4].plot(
        ALPHAS, [g / open_gate for g in gradients], "s-", color=figures.COLOURS[1], label="gradient to W, of alpha = 1"
    )
    axes[4].set_xlabel("alpha")
    axes[4].set_title("the gate tanh(alpha)", fontsize=10)
    axes[4].legend(frameon=False, fontsize=8)
    axes[4].grid(alpha=0.3)
    return drawn


def main(config: Config) -> None:
    torch.set_num_threads(1)
    config.figure.write_text(figures.svg(figure()), encoding="utf-8")
    print(config.figure)


if __name__ == "__main__":
    main(tyro.cli(Config))
