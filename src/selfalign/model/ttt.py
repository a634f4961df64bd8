"""The TTT layer: its fast weights W1, b1 are an argument, its slow weights (theta, norms, alpha) are the module's.

Per head of size f (arXiv 2407.04620, TTT-Linear; W is held fixed within a forward pass):

    q, k, v = theta_Q x, theta_K x, theta_V x
    Z       = LN(q W1 + b1);      out = theta_O(post_norm(q + Z))
    L_ttt   = mean((LN(sg(k) W1 + b1) - sg(v - k))^2)                sg: stop-gradient

With `meta_learning`, W is where the paper's inner loop starts (`inner_loop.py`): per sample, each token reads a W that
has learned from the tokens which it may see. L_ttt stays that of the W which was given.

Shapes: B batch, T tokens, H heads, f head size, D width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from selfalign.model import masks
from selfalign.model.inner_loop import FastWeights, Norm, inner_loop, learning_rates, position_scales
from selfalign.model.layers import Modulation, make_norm


@dataclass(frozen=True)
class TTTConfig:
    """Sizes of the TTT layers and the depths that have one."""

    num_heads: int = 4
    head_dim: int = 32
    positions: tuple[int, ...] | str = "all"
    """Depths of the VLM at which the experts get a TTT layer: "all", "none" or a tuple of indices."""
    alpha_init: float = 0.1
    """tanh(alpha) scales the branch: 0 makes the layer absent, but also blocks the gradient to W."""
    span: int | None = None
    """None: contexts are `full`, every fast weight of a body moves; K: they lie in a learned span of K directions."""
    meta_learning: bool = False
    """The inner loop: W learns from the tokens within a forward. Off: one forward leaves W as it is."""
    mini_batch: int = 16
    """Tokens whose updates are computed at one W; at least the suffix's length: all of them."""
    base_rate: float = 1.0
    """The inner loop's learning rates lie between 0 and this / head_dim."""
    causal: bool = True
    """Whether a token's W has learned from itself and the tokens before, or from all of its mini-batch."""

    def __post_init__(self) -> None:
        if self.mini_batch < 1 or not self.base_rate > 0:
            raise ValueError(
                "the inner loop needs mini_batch >= 1 and base_rate > 0; "
                f"got mini_batch={self.mini_batch}, base_rate={self.base_rate}"
            )

    def depths(self, vlm_depth: int) -> tuple[int, ...]:
        """The chosen depths, checked against the VLM's depth."""
        if self.positions == "all":
            return tuple(range(vlm_depth))
        if self.positions == "none":
            return ()
        wrong = [i for i in self.positions if not isinstance(i, int) or not 0 <= i < vlm_depth]
        if wrong or isinstance(self.positions, str):
            raise ValueError(
                f"ttt positions must be 'all', 'none' or depths in 0..{vlm_depth - 1}, got {self.positions!r}"
            )
        return tuple(self.positions)


def fast_linear(
    x_BTHf: Float[Tensor, "B T H f"], W1: Float[Tensor, "*B H f f"], b1: Float[Tensor, "*B H 1 f"]
) -> Float[Tensor, "B T H f"]:
    """`x W1 + b1` per head, with one W for the batch or one per sample."""
    x_BHTf = x_BTHf.transpose(1, 2)
    return (x_BHTf @ W1 + b1).transpose(1, 2)


def head_norm(x_BTHf: Tensor, weight_Hf: Tensor, bias_Hf: Tensor, eps: float = 1e-6) -> Tensor:
    """Layer norm over each head's f numbers, with that head's own weight and bias."""
    return F.layer_norm(x_BTHf, x_BTHf.shape[-1:], eps=eps) * weight_Hf + bias_Hf


def reconstruction_loss(
    k_BTHf: Tensor, v_BTHf: Tensor, W1: Tensor, b1: Tensor, weight_Hf: Tensor, bias_Hf: Tensor
) -> Float[Tensor, " B"]:
    """L_ttt of each sample. Its gradient reaches W1 and b1 only: trainable targets would collapse k and v to zero."""
    k, v, weight, bias = k_BTHf.detach(), v_BTHf.detach(), weight_Hf.detach(), bias_Hf.detach()
    predicted = head_norm(fast_linear(k, W1, b1), weight, bias)
    return (predicted - (v - k)).square().mean(dim=(1, 2, 3))


class TTTLayer(nn.Module):
    """`x + tanh(alpha) * TTT(adaRMS(x, time))`, one object shared by the action and the alignment expert.

    `W1` and `b1` of the module are the prior W0, from which every alignment starts; a forward pass reads the fast
    weights that it is given.
    """

    def __init__(self, width: int, config: TTTConfig, cond_dim: int | None):
        super().__init__()
        heads, size = config.num_heads, config.head_dim
        self.num_heads, self.head_dim = heads, size
        self.norm = make_norm(width, cond_dim)
        self.theta_q = nn.Linear(width, heads * size, bias=False)
        self.theta_k = nn.Linear(width, heads * size, bias=False)
        self.theta_v = nn.Linear(width, heads * size, bias=False)
        self.theta_o = nn.Linear(heads * size, width, bias=False)
        self.ttt_norm_weight = nn.Parameter(torch.ones(heads, size))
        self.ttt_norm_bias = nn.Parameter(torch.zeros(heads, size))
        self.post_norm = nn.LayerNorm(heads * size, eps=1e-6)
        self.alpha = nn.Parameter(torch.full((width,), config.alpha_init))
        self.W1 = nn.Parameter(0.02 * torch.randn(heads, size, size))
        self.b1 = nn.Parameter(torch.zeros(heads, 1, size))
        self.inner = InnerLoop(width, config) if config.meta_learning else None

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        cond: Float[Tensor, "B C"] | Modulation | None,
        W1: Float[Tensor, "*B H f f"],
        b1: Float[Tensor, "*B H 1 f"],
        mask: Bool[Tensor, "T T"] | None = None,
        *,
        with_loss: bool = False,
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, " B"] | None]:
        """The tokens after the gated branch, and L_ttt of each sample where it is asked for.

        Args:
            mask: the suffix's attention mask, which the inner loop keeps to; None: all tokens are one block. Without
                the inner loop no token reads another, and it is not used.
        """
        normed, _ = self.norm(x, cond)
        thetas = (self.theta_q, self.theta_k, self.theta_v)
        q, k, v = (self._heads(theta(normed)).to(W1.dtype) for theta in thetas)  # W stays float32 in any precision
        if self.inner is None:
            read = q + head_norm(fast_linear(q, W1, b1), self.ttt_norm_weight, self.ttt_norm_bias)
        else:
            state = FastWeights(*(w.expand(len(x), *w.shape[-3:]) for w in (W1, b1)))
            norm = Norm(self.ttt_norm_weight, self.ttt_norm_bias)
            read = self.inner(normed, state, q, k, v, norm, masks.blocks(mask) if mask is not None else None)
        branch = self.theta_o(self.post_norm(read.flatten(2)).to(x.dtype))
        loss = None
        if with_loss:
            loss = reconstruction_loss(k, v, W1, b1, self.ttt_norm_weight, self.ttt_norm_bias)
        return x + (torch.tanh(self.alpha) * branch).to(x.dtype), loss

    def _heads(self, x: Float[Tensor, "B T HF"]) -> Float[Tensor, "B T H f"]:
        return x.unflatten(-1, (self.num_heads, self.head_dim))


class InnerLoop(nn.Module):
    """The learned parts of the inner loop: a learning rate for each token and head, and a scale for each position."""

    def __init__(self, width: int, config: TTTConfig):
        super().__init__()
        self.head_dim, self.base_rate, self.causal = config.head_dim, config.base_rate, config.causal
        self.rate = nn.Linear(width, config.num_heads)
        nn.init.normal_(self.rate.weight, std=0.02)
        nn.init.zeros_(self.rate.bias)
        self.scale_offset = nn.Parameter(torch.zeros(config.mini_batch))

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: FastWeights,
        q: Float[Tensor, "B T H f"],
        k: Float[Tensor, "B T H f"],
        v: Float[Tensor, "B T H f"],
        norm: Norm,
        blocks: list[masks.TokenBlock] | None = None,
    ) -> Float[Tensor, "B T H f"]:
        """`q + LN(q W + b)` of each token, with the W that has learned from what the token may see.

        Every block of tokens runs the loop by itself, from the same state, over the tokens that it sees: a state that
        went on from one task's tokens to the next would carry labels across the attention mask.
        """
        x, rate = x.to(self.rate.weight.dtype), self.rate
        rate = learning_rates(x, rate.weight, rate.bias, self.base_rate, self.head_dim)
        scale = position_scales(self.scale_offset)

        def run(sees: slice | list[int]) -> Float[Tensor, "B S H f"]:
            seen = q[:, sees], k[:, sees], v[:, sees], rate[:, sees]
            return inner_loop(state, *seen, scale, norm, causal=self.causal)[1]

        if blocks is None:
            return run(slice(None))
        out = torch.empty_like(q)
        for block in blocks:
            out[:, block.rows] = run(block.sees)[:, block.own]
        return out
