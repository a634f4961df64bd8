"""The inner loop of TTT-Linear (arXiv 2407.04620) as pure functions: W1, b1 learn from the tokens that they read.

A sequence is cut into mini-batches of K tokens. In each, per sample and head, from the state W, b before it:

    g_j   = d/dz_j 1/2 |LN(z_j) - (v_j - k_j)|^2,   z_j = k_j W + b             every gradient is taken at W, b
    W_i   = W - s_i sum_j eta_j k_j^T g_j,   b_i = b - s_i sum_j eta_j g_j      causal: over j <= i
    out_i = q_i + LN(q_i W_i + b_i)

eta_j is the learning rate of token j and s_i the scale of position i in its mini-batch (about 1 / i, which makes the
sum a mean). The last W_i, b_i are the state of the next mini-batch; a last mini-batch may be shorter.

`primal_step` forms every W_i; `dual_step` gives the same numbers by attention-like products and never does.

**Causal** (the paper's): token i reads its own update and those of all tokens before it. **Bidirectional chunk**
(`causal=False`): all tokens of a mini-batch read the state after the whole of it, so within the mini-batch every
output depends on every token; later mini-batches stay unseen. With K >= T the whole sequence is one such chunk.

Gradients flow through all of it, the updates included (second order): that is what trains q, k, v and the learning
rates to make the loop useful.

Shapes: B batch, T tokens, K tokens of a mini-batch, H heads, f head size, D width.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

EPS = 1e-6


class FastWeights(NamedTuple):
    """The state of the loop, one per sample."""

    W1: Float[Tensor, "B H f f"]
    b1: Float[Tensor, "B H 1 f"]


class Norm(NamedTuple):
    """Weight and bias of the layer norm over each head's f numbers."""

    weight: Float[Tensor, "H f"]
    bias: Float[Tensor, "H f"]

    def __call__(self, z_BHKf: Tensor) -> Tensor:
        return F.layer_norm(z_BHKf, z_BHKf.shape[-1:], eps=EPS) * self.weight[:, None] + self.bias[:, None]


class MiniBatch(NamedTuple):
    """What one step reads."""

    q: Float[Tensor, "B H K f"]
    k: Float[Tensor, "B H K f"]
    v: Float[Tensor, "B H K f"]
    rate: Float[Tensor, "B H K"]
    """eta: the learning rate of each token."""
    scale: Float[Tensor, " K"]
    """s: the scale of each position."""


Step = Callable[[FastWeights, MiniBatch, Norm, bool], tuple[FastWeights, Tensor]]


def learning_rates(
    x: Float[Tensor, "B T D"],
    weight: Float[Tensor, "H D"],
    bias: Float[Tensor, " H"],
    base: float,
    head_dim: int,
) -> Float[Tensor, "B T H"]:
    """eta of each token and head: `base * sigmoid(x weight^T + bias) / f` (section 2.7 of the paper)."""
    return base / head_dim * F.linear(x, weight, bias).sigmoid()


def position_scales(offset: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
    """s of each position of a mini-batch: 1 / i plus a learned offset, never negative."""
    count = torch.arange(1, len(offset) + 1, dtype=offset.dtype, device=offset.device)
    return (1 / count + offset).clamp_min(0)


def reconstruction_grad(
    z: Float[Tensor, "B H K f"], target: Float[Tensor, "B H K f"], norm: Norm
) -> Float[Tensor, "B H K f"]:
    """The gradient of `1/2 |LN(z) - target|^2` by z, written out, so that it can be differentiated again."""
    std = (z.var(-1, keepdim=True, unbiased=False) + EPS).sqrt()
    unit = (z - z.mean(-1, keepdim=True)) / std
    weight, bias = norm.weight[:, None], norm.bias[:, None]
    grad = (weight * unit + bias - target) * weight
    along = unit * (grad * unit).mean(-1, keepdim=True)
    return (grad - grad.mean(-1, keepdim=True) - along) / std


def dual_step(
    state: FastWeights, batch: MiniBatch, norm: Norm, causal: bool = True
) -> tuple[FastWeights, Float[Tensor, "B H K f"]]:
    """One mini-batch without a W per token: `q_i W_i = q_i W - sum_j s_i eta_j (q_i k_j) g_j`.

    Returns:
        The state after the mini-batch, and the outputs. Memory grows with K^2.
    """
    grad = reconstruction_grad(batch.k @ state.W1 + state.b1, batch.v - batch.k, norm)
    step_BHKK = _scales(batch, causal)[:, None] * batch.rate[:, :, None, :]
    step_BHKK = step_BHKK.tril() if causal else step_BHKK
    moved = (step_BHKK * (batch.q @ batch.k.mT + 1)) @ grad  # the 1 is b's share
    out = batch.q + norm(batch.q @ state.W1 + state.b1 - moved)
    last = step_BHKK[:, :, -1, :, None] * grad
    return FastWeights(state.W1 - batch.k.mT @ last, state.b1 - last.sum(-2, keepdim=True)), out


def primal_step(
    state: FastWeights, batch: MiniBatch, norm: Norm, causal: bool = True
) -> tuple[FastWeights, Float[Tensor, "B H K f"]]:
    """One mini-batch by the definition: a W and b for every token. The plain twin of `dual_step`.

    Returns:
        The state after the mini-batch, and the outputs. Memory grows with K f^2.
    """
    grad = reconstruction_grad(batch.k @ state.W1 + state.b1, batch.v - batch.k, norm)
    b1_BHKf = batch.rate[..., None] * grad
    W1_BHKff = batch.k[..., :, None] * b1_BHKf[..., None, :]
    if causal:
        W1_BHKff, b1_BHKf = W1_BHKff.cumsum(2), b1_BHKf.cumsum(2)
    else:
        W1_BHKff, b1_BHKf = (x.sum(2, keepdim=True).expand_as(x) for x in (W1_BHKff, b1_BHKf))
    scale = _scales(batch, causal)
    W1_BHKff = state.W1[:, :, None] - scale[:, None, None] * W1_BHKff
    b1_BHKf = state.b1 - scale[:, None] * b1_BHKf
    out = batch.q + norm((batch.q[..., None, :] @ W1_BHKff).squeeze(-2) + b1_BHKf)
    return FastWeights(W1_BHKff[:, :, -1], b1_BHKf[:, :, -1:]), out


def _scales(batch: MiniBatch, causal: bool) -> Float[Tensor, " K"]:
    """s of the mini-batch's positions; in a bidirectional chunk, all read the last one's state."""
    scale = batch.scale[: batch.k.shape[2]]
    return scale if causal else scale[-1].expand_as(scale)


def inner_loop(
    state: FastWeights,
    q: Float[Tensor, "B T H f"],
    k: Float[Tensor, "B T H f"],
    v: Float[Tensor, "B T H f"],
    rate: Float[Tensor, "B T H"],
    scale: Float[Tensor, " K"],
    norm: Norm,
    *,
    causal: bool = True,
    step: Step = dual_step,
) -> tuple[FastWeights, Float[Tensor, "B T H f"]]:
    """Runs a sequence through the loop, in mini-batches of as many tokens as `scale` has positions.

    Args:
        state: where the loop starts, per sample; it is not changed.
        rate: learning rate of each token and head (`learning_rates`).
        scale: scale of each position of a mini-batch (`position_scales`).
        causal: False lets all tokens of a mini-batch read the state after it.
        step: `dual_step`, or its plain twin `primal_step`.

    Returns:
        The state after the last token, and `q + LN(q W + b)` of each token.
    """
    size, outs = len(scale), []
    tokens = (x.transpose(1, 2).split(size, dim=2) for x in (q, k, v, rate))
    for q_BHKf, k_BHKf, v_BHKf, rate_BHK in zip(*tokens, strict=True):
        state, out = step(state, MiniBatch(q_BHKf, k_BHKf, v_BHKf, rate_BHK, scale), norm, causal)
        outs.append(out)
    return state, torch.cat(outs, dim=2).transpose(1, 2)
