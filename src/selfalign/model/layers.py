"""Gemma's building blocks: RMS norms, gated MLP, rotary positions, and the two ways to bring in flow time.

Shapes: B batch, T tokens, D width, H heads, K head_dim.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


class Modulation(NamedTuple):
    """What an adaRMS norm takes from a condition; leading axes of steps or samples, then one token, then the width."""

    scale: Float[Tensor, "*N 1 D"]
    shift: Float[Tensor, "*N 1 D"]
    gate: Float[Tensor, "*N 1 D"]

    def step(self, i: int) -> "Modulation":
        """That of step i, where steps are the first axis."""
        return Modulation(self.scale[i], self.shift[i], self.gate[i])


class RMSNorm(nn.Module):
    """`x / rms(x) * (1 + weight)`, computed in float32 (Gemma's convention: weight starts at 0)."""

    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(
        self, x: Float[Tensor, "B T D"], cond: Tensor | Modulation | None = None
    ) -> tuple[Float[Tensor, "B T D"], None]:
        """The normalised tokens and no gate; `cond` is ignored, so that this and `AdaRMSNorm` have one interface."""
        return (_rms_normalise(x, self.eps) * (1 + self.weight.float())).to(x.dtype), None


class AdaRMSNorm(nn.Module):
    """RMS norm whose scale, shift and residual gate come from a condition (pi0.5's adaRMS, arXiv 2504.16054)."""

    def __init__(self, width: int, cond_dim: int, eps: float = 1e-6):
        super().__init__()
        self.modulation = nn.Linear(cond_dim, 3 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        nn.init.ones_(self.modulation.bias.data[2 * width :])  # open gates: from scratch, closed ones learn late
        self.eps = eps

    def modulate(self, cond: Float[Tensor, "*N C"]) -> Modulation:
        """Scale, shift and gate of each condition."""
        return Modulation(*self.modulation(cond)[..., None, :].chunk(3, dim=-1))

    def forward(
        self, x: Float[Tensor, "B T D"], cond: Float[Tensor, "B C"] | Modulation | None
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "#B 1 D"]]:
        """The modulated tokens and the gate of the residual branch that follows.

        Args:
            cond: the time condition, or what `modulate` has made of it before.
        """
        if cond is None:
            raise ValueError("adaRMS needs the time condition [B, cond_dim]; got None")
        scale, shift, gate = cond if isinstance(cond, Modulation) else self.modulate(cond)
        normed = _rms_normalise(x, self.eps) * (1 + scale.float()) + shift.float()
        return normed.to(x.dtype), gate.to(x.dtype)


def _rms_normalise(x: Tensor, eps: float) -> Tensor:
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def make_norm(width: int, cond_dim: int | None) -> RMSNorm | AdaRMSNorm:
    """The norm of a stream: plain, or modulated where the stream has a condition."""
    return RMSNorm(width) if cond_dim is None else AdaRMSNorm(width, cond_dim)


def gated_residual(x: Tensor, branch: Tensor, gate: Tensor | None) -> Tensor:
    """`x + gate * branch`; without a gate, the plain residual."""
    return x + branch if gate is None else x + gate * branch


class GatedMLP(nn.Module):
    """Gemma's MLP: `down(gelu(gate x) * up x)`."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        return self.down_proj(F.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x))


class Rotation(NamedTuple):
    """Sine and cosine of the rotary angles of some positions; one for all layers of a pass."""

    sin: Float[Tensor, "B T 1 half"]
    cos: Float[Tensor, "B T 1 half"]


def rotation(positions: Int[Tensor, "B T"], head_dim: int, max_wavelength: float = 10_000.0) -> Rotation:
    """Rotary angles, always in float32."""
    half = head_dim // 2
    # 1 / base^x and not base^-x: the reference's rounding, to the last bit.
    frequency = 1.0 / max_wavelength ** (torch.arange(half, dtype=torch.float32, device=positions.device) / half)
    angle = positions[:, :, None, None].float() * frequency
    return Rotation(angle.sin(), angle.cos())


def apply_rope(x_BTHK: Float[Tensor, "B T H K"], turn: Rotation) -> Float[Tensor, "B T H K"]:
    """Rotary positions, halves rotated against each other (Gemma's layout)."""
    sin, cos = turn
    first, second = x_BTHK.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x_BTHK.dtype)


def time_embedding(
    time: Float[Tensor, " B"], width: int, min_period: float = 4e-3, max_period: float = 4.0
) -> Float[Tensor, "B D"]:
    """Sinusoidal embedding of flow time with periods spaced evenly in log between the two bounds (pi0)."""
    fraction = torch.linspace(0, 1, width // 2, dtype=torch.float64, device=time.device)
    period = min_period * (max_period / min_period) ** fraction
    angle = (2 * math.pi / period)[None, :] * time.double()[:, None]
    return torch.cat([angle.sin(), angle.cos()], dim=-1).float()


class Timed(NamedTuple):
    """Tokens with flow time brought in, and the condition for adaRMS (None where time is in the tokens)."""

    tokens: Tensor
    cond: Any
    """`[B, C]`, or the `StreamModulation` that a stream has made of it before."""


class AdaRMSTime(nn.Module):
    """pi0.5's way: time becomes the condition of every norm; the tokens stay as they are."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp_in = nn.Linear(width, width)
        self.mlp_out = nn.Linear(width, width)
        self.width = width

    @property
    def cond_dim(self) -> int | None:
        return self.width

    def condition(self, time: Float[Tensor, " N"]) -> Float[Tensor, "N C"]:
        embedding = time_embedding(time, self.width).to(self.mlp_in.weight.dtype)
        return F.silu(self.mlp_out(F.silu(self.mlp_in(embedding))))

    def forward(self, tokens: Float[Tensor, "B T D"], time: Float[Tensor, " B"], cond: Any = None) -> Timed:
        """`cond`: the condition of that time where it is at hand."""
        return Timed(tokens, self.condition(time) if cond is None else cond)


class ConcatTime(nn.Module):
    """pi0's way: time is concatenated to each noisy token and mixed in by an MLP; norms stay plain."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp_in = nn.Linear(2 * width, width)
        self.mlp_out = nn.Linear(width, width)
        self.width = width

    @property
    def cond_dim(self) -> int | None:
        return None

    def forward(self, tokens: Float[Tensor, "B T D"], time: Float[Tensor, " B"], cond: None = None) -> Timed:
        embedding = time_embedding(time, self.width).to(tokens.dtype)[:, None].expand(-1, tokens.shape[1], -1)
        return Timed(self.mlp_out(F.silu(self.mlp_in(torch.cat([tokens, embedding], dim=-1)))), None)


TimeComponent = AdaRMSTime | ConcatTime

TIME_COMPONENTS: dict[str, type[AdaRMSTime] | type[ConcatTime]] = {"adarms": AdaRMSTime, "concat": ConcatTime}
