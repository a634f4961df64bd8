"""N streams with one joint attention.

Each layer projects every present stream's tokens with that stream's own weights, concatenates, attends once and
splits. A stream that is absent costs nothing. The prefix (the `vlm` stream) never attends to a suffix, so its keys and
values are computed once (`prefix`) and every suffix reads them (`suffix`); `joint` is the plain twin of the two.

Shapes: B batch, T tokens (P of the prefix), D width of the stream, H heads, G key/value heads, K head_dim.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from selfalign.model import masks
from selfalign.model.context import EmbodimentContext
from selfalign.model.layers import (
    AdaRMSNorm,
    GatedMLP,
    Modulation,
    RMSNorm,
    Rotation,
    apply_rope,
    gated_residual,
    make_norm,
    rotation,
)
from selfalign.model.prefix import KeyValues, LatentPrompt, PrefixCache
from selfalign.model.ttt import TTTLayer


@dataclass(frozen=True)
class StreamConfig:
    """Sizes of one stream. Heads, KV heads and head_dim are the same in all streams that attend together."""

    width: int
    mlp_dim: int
    depth: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    reads: tuple[int, ...] | None = None
    """Per layer, the VLM layer that it attends to; None: layer i reads VLM layer i."""

    def vlm_layers(self) -> tuple[int, ...]:
        return tuple(range(self.depth)) if self.reads is None else self.reads


@dataclass(frozen=True)
class SuffixOutput:
    """A suffix after its stream."""

    tokens: Float[Tensor, "B T D"]
    ttt_losses: Mapping[int, Float[Tensor, " B"]]
    """L_ttt of each sample, by depth of the TTT layer."""


class BlockModulation(NamedTuple):
    """What the norms of one layer take from a condition; `ttt` is None where the layer has none."""

    attention: Modulation
    ttt: Modulation | None
    mlp: Modulation


class StreamModulation(NamedTuple):
    """What all norms of a stream take from a condition. It stands wherever the condition itself can."""

    blocks: tuple[BlockModulation, ...]
    final: Modulation


Condition = Float[Tensor, "B C"] | StreamModulation | None


class BlockOutput(NamedTuple):
    """A layer's tokens, its own keys and values, and L_ttt of each sample where it was asked for."""

    x: Tensor
    kv: KeyValues
    ttt_loss: Tensor | None


class Block(nn.Module):
    """One layer of one stream. `ttt` may be shared with the block of another stream."""

    def __init__(self, config: StreamConfig, cond_dim: int | None, ttt: TTTLayer | None = None):
        super().__init__()
        self.heads, self.head_dim = config.num_heads, config.head_dim
        self.attention_norm = make_norm(config.width, cond_dim)
        self.q_proj = nn.Linear(config.width, config.num_heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(config.width, config.num_kv_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.width, config.num_kv_heads * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.num_heads * config.head_dim, config.width, bias=False)
        self.ttt = ttt
        self.mlp_norm = make_norm(config.width, cond_dim)
        self.mlp = GatedMLP(config.width, config.mlp_dim)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        turn: Rotation,
        mask: Bool[Tensor, "B T S"] | Float[Tensor, "B T S"],
        read: KeyValues | None = None,
        cond: Tensor | BlockModulation | None = None,
        fast: tuple[Tensor, Tensor, Tensor] | None = None,
        with_loss: bool = False,
    ) -> BlockOutput:
        """Attention over the keys and values that are `read` and the tokens' own, then TTT layer and MLP."""
        normed, gate = self.attention_norm(x, cond.attention if isinstance(cond, BlockModulation) else cond)
        kv = self.key_values(normed, turn)
        k = kv.k if read is None else torch.cat([read.k, kv.k], dim=1)
        v = kv.v if read is None else torch.cat([read.v, kv.v], dim=1)
        attended = attend(self.queries(normed, turn), k, v, mask)
        x, loss = self.after_attention(x, attended, gate, cond, fast, with_loss)
        return BlockOutput(x, kv, loss)

    def key_values(self, normed: Tensor, turn: Rotation) -> KeyValues:
        k, v = (proj(normed).unflatten(-1, (-1, self.head_dim)) for proj in (self.k_proj, self.v_proj))
        return KeyValues(apply_rope(k, turn), v)

    def queries(self, normed: Tensor, turn: Rotation) -> Tensor:
        return apply_rope(self.q_proj(normed).unflatten(-1, (self.heads, self.head_dim)), turn)

    def after_attention(
        self,
        x: Tensor,
        attended: Tensor,
        gate: Tensor | None,
        cond: Tensor | BlockModulation | None,
        fast: tuple[Tensor, Tensor, Tensor] | None,
        with_loss: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention's residual, the TTT layer where there is one, the MLP."""
        for_ttt, for_mlp = (cond.ttt, cond.mlp) if isinstance(cond, BlockModulation) else (cond, cond)
        x = gated_residual(x, self.o_proj(attended), gate)
        loss = None
        if self.ttt is not None and fast is not None:
            x, loss = self.ttt(x, for_ttt, *fast, with_loss=with_loss)
        normed, gate = self.mlp_norm(x, for_mlp)
        return gated_residual(x, self.mlp(normed), gate), loss

    def modulate(self, cond: Float[Tensor, "*N C"]) -> BlockModulation:
        """What this layer's norms take from each condition."""
        ttt = None if self.ttt is None else _modulate(self.ttt.norm, cond)
        return BlockModulation(_modulate(self.attention_norm, cond), ttt, _modulate(self.mlp_norm, cond))


class Stream(nn.Module):
    """The transformer of one stream: blocks and a final norm."""

    def __init__(self, config: StreamConfig, cond_dim: int | None = None, ttt: Mapping[int, TTTLayer] | None = None):
        super().__init__()
        self.config = config
        depths = config.vlm_layers()
        blocks = nn.ModuleList(Block(config, cond_dim, (ttt or {}).get(depth)) for depth in depths)
        self.blocks = cast(Sequence[Block], blocks)
        self.final_norm = make_norm(config.width, cond_dim)

    @property
    def dtype(self) -> torch.dtype:
        """The type of its tokens: that of the matrices, whatever the norms have."""
        return self.blocks[0].q_proj.weight.dtype

    def modulations(self, conds: Float[Tensor, "N B C"]) -> list[StreamModulation]:
        """What the norms take from the conditions of N steps, one matmul a norm.

        A norm's matrix is larger than all that it multiplies, so reading it once instead of N times is what counts;
        stacking the matrices of all norms as well would copy them first.
        """
        blocks, final = [block.modulate(conds) for block in self.blocks], _modulate(self.final_norm, conds)
        return [
            StreamModulation(tuple(_step_of(block, i) for block in blocks), final.step(i)) for i in range(len(conds))
        ]


def _modulate(norm: RMSNorm | AdaRMSNorm, cond: Tensor) -> Modulation:
    if not isinstance(norm, AdaRMSNorm):
        raise ValueError("only the norms of a stream with a time condition are modulated")
    return norm.modulate(cond)


def _step_of(block: BlockModulation, i: int) -> BlockModulation:
    attention, ttt, mlp = block
    return BlockModulation(attention.step(i), None if ttt is None else ttt.step(i), mlp.step(i))


def attend(q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, mask_BTS: Tensor) -> Float[Tensor, "B T HK"]:
    """Softmax attention with grouped key/value heads; the mask may be boolean, or `masks.bias` of it."""
    q, k, v = (x.transpose(1, 2) for x in (q_BTHK, k_BTGK, v_BTGK))
    if q.is_cuda:
        k, v = (as_many_heads(x, q.shape[1]) for x in (k, v))
    grouped = k.shape[1] != q.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_BTS[:, None], enable_gqa=grouped)
    return out.transpose(1, 2).flatten(2)


def as_many_heads(x_BGSK: Tensor, heads: int) -> Float[Tensor, "B H S K"]:
    """Keys or values under every head that reads them.

    On a CUDA device, torch groups heads itself only where it takes no mask or writes out all scores; its fused
    attention with a mask wants equal counts. The one head of pi0's keys is repeated without a copy.
    """
    group = heads // x_BGSK.shape[1]
    return x_BGSK[:, :, None].expand(-1, -1, group, -1, -1).flatten(1, 2) if group > 1 else x_BGSK


def _fast_weights(context: EmbodimentContext | None, slots: Mapping[int, int], depth: int, mask: Tensor):
    """(W1, b1, the suffix's mask) for the TTT layer at a depth; None where there is none."""
    if context is None or depth not in slots:
        return None
    return context.W1[slots[depth]], context.b1[slots[depth]], mask


class Mixture(nn.Module):
    """The streams, their TTT layers, and the three ways to run them: `prefix`, `suffix`, `joint`.

    Args:
        vlm: the prefix's stream.
        experts: the suffixes' streams by name, with the width of their time condition (None: no adaRMS).
        ttt: TTT layers by depth, one object for all experts.
        prompt_tokens: tokens of a latent prompt, which all experts read; 0: there is none.
    """

    def __init__(
        self,
        vlm: StreamConfig,
        experts: Mapping[str, tuple[StreamConfig, int | None]],
        ttt: Mapping[int, TTTLayer] | None = None,
        prompt_tokens: int = 0,
    ):
        super().__init__()
        for name, (config, _) in experts.items():
            _check_compatible(name, config, vlm)
        self.vlm, self.head_dim = Stream(vlm), vlm.head_dim
        streams = nn.ModuleDict({name: Stream(c, cond_dim, ttt) for name, (c, cond_dim) in experts.items()})
        self.experts = cast(Mapping[str, Stream], streams)
        self.ttt_slots = {depth: i for i, depth in enumerate(sorted(ttt or {}))}
        self.prompt: LatentPrompt | None = None
        if prompt_tokens:
            self.add_prompt(prompt_tokens)

    def add_prompt(self, tokens: int) -> LatentPrompt:
        """A fresh latent prompt in the place of the one that was there."""
        depths = sorted({depth for stream in self.experts.values() for depth in stream.config.vlm_layers()})
        self.prompt = LatentPrompt(depths, tokens, self.vlm.config.num_kv_heads, self.head_dim)
        return self.prompt

    # ---- the fast path: prefix once, suffixes on its cache ---------------------------------------------------------

    def prefix(
        self,
        x: Float[Tensor, "B P D"],
        mask: Bool[Tensor, "B P"],
        *,
        with_hidden: bool = False,
        whole_last_layer: bool = False,
    ) -> PrefixCache:
        """Run the prefix alone.

        The last layer computes keys and values only, since nothing reads its output; with `whole_last_layer` it
        computes that too.
        """
        turn = rotation(masks.positions(mask), self.head_dim)
        attention = masks.bias(masks.prefix_self_mask(mask), self.vlm.dtype)
        x, cache, hidden = x.to(self.vlm.dtype), [], []
        *inner, last = self.vlm.blocks
        for block in inner:
            x, kv, _ = block(x, turn, attention)
            cache.append(kv)
            hidden.append(x)
        if whole_last_layer:
            cache.append(last(x, turn, attention).kv)
        else:
            cache.append(last.key_values(last.attention_norm(x)[0], turn))
        return PrefixCache(tuple(cache), mask, tuple(hidden) if with_hidden else ())

    def suffix(
        self,
        name: str,
        x: Float[Tensor, "B T D"],
        cond: Condition,
        mask: Bool[Tensor, "T T"],
        cache: PrefixCache,
        context: EmbodimentContext | None,
        *,
        with_ttt_loss: bool = False,
    ) -> SuffixOutput:
        """Run one expert's tokens on a cached prefix. They leave in the type in which they came."""
        stream, dtype = self.experts[name], x.dtype
        positions = cache.lengths[:, None] + torch.arange(x.shape[1], device=x.device)
        turn = rotation(positions, self.head_dim)
        cache = cache if self.prompt is None else self.prompt.beside(cache)
        attention = masks.bias(masks.suffix_mask(cache.mask, mask), stream.dtype)
        ahead = isinstance(cond, StreamModulation)
        conds, final = (cond.blocks, cond.final) if ahead else ([cond] * len(stream.blocks), cond)
        x, losses = x.to(stream.dtype), {}
        for block, depth, block_cond in zip(stream.blocks, stream.config.vlm_layers(), conds, strict=True):
            fast = _fast_weights(context, self.ttt_slots, depth, mask)
            x, _, loss = block(x, turn, attention, cache.layers[depth], block_cond, fast, with_ttt_loss)
            if loss is not None:
                losses[depth] = loss
        return SuffixOutput(stream.final_norm(x, final)[0].to(dtype), losses)

    # ---- the plain twin --------------------------------------------------------------------------------------------

    def joint(
        self,
        prefix: Float[Tensor, "B P D"],
        prefix_mask: Bool[Tensor, "B P"],
        suffixes: Mapping[str, tuple[Tensor, Tensor | None, Bool[Tensor, "T T"]]],
        context: EmbodimentContext | None,
    ) -> dict[str, Tensor]:
        """All streams in one forward with one attention matrix; experts must be as deep as the VLM.

        `suffixes` maps an expert's name to its tokens, condition and own mask. The reference for `prefix` + `suffix`.
        """
        names = list(suffixes)
        streams = [self.vlm, *(self.experts[n] for n in names)]
        given = [prefix, *(suffixes[n][0] for n in names)]
        xs = [x.to(s.dtype) for s, x in zip(streams, given, strict=True)]
        conds = [None, *(suffixes[n][1] for n in names)]
        lengths = [x.shape[1] for x in xs]
        start = prefix_mask.long().sum(1)[:, None]
        positions = [masks.positions(prefix_mask)]
        positions += [start + torch.arange(n, device=prefix.device) for n in lengths[1:]]
        turns = [rotation(p, self.head_dim) for p in positions]
        attention = _joint_mask(prefix_mask, [suffixes[n][2] for n in names])
        if self.prompt is not None:
            attention = _with_prompt(attention, prefix_mask.shape[1], self.prompt.tokens)
        for depth in range(len(self.vlm.blocks)):
            blocks = [s.blocks[depth] for s in streams]
            normed, gates = zip(
                *(b.attention_norm(x, c) for b, x, c in zip(blocks, xs, conds, strict=True)), strict=True
            )
            kvs = [b.key_values(n, p) for b, n, p in zip(blocks, normed, turns, strict=True)]
            q = torch.cat([b.queries(n, p) for b, n, p in zip(blocks, normed, turns, strict=True)], dim=1)
            if self.prompt is not None:
                kvs = (*kvs, self.prompt.layer(depth, like=kvs[0]))
            k, v = torch.cat([kv.k for kv in kvs], dim=1), torch.cat([kv.v for kv in kvs], dim=1)
            attended = attend(q, k, v, attention).split(lengths, dim=1)
            fast = [None, *(_fast_weights(context, self.ttt_slots, depth, suffixes[n][2]) for n in names)]
            xs = [
                b.after_attention(x, a, g, c, f, False)[0]
                for b, x, a, g, c, f in zip(blocks, xs, attended, gates, conds, fast, strict=True)
            ]
        out = [s.final_norm(x, c)[0].to(g.dtype) for s, x, c, g in zip(streams, xs, conds, given, strict=True)]
        return dict(zip(["vlm", *names], out, strict=True))


def _joint_mask(prefix_mask: Tensor, suffixes: list[Tensor]) -> Bool[Tensor, "B T T"]:
    """Prefix rows see the prefix; each suffix's rows see the prefix and themselves; suffixes never see each other."""
    blocks = torch.block_diag(*[torch.ones(1, 1), *[s.float() for s in suffixes]]).bool()[1:, 1:].to(prefix_mask.device)
    batch, p = prefix_mask.shape
    mask = torch.zeros(batch, p + len(blocks), p + len(blocks), dtype=torch.bool, device=prefix_mask.device)
    mask[:, :p, :p] = masks.prefix_self_mask(prefix_mask)
    mask[:, p:] = masks.suffix_mask(prefix_mask, blocks)
    return mask


def _with_prompt(mask: Bool[Tensor, "B T T"], prefix: int, prompt: int) -> Bool[Tensor, "B T S"]:
    """Columns for a latent prompt after all others, which the rows of suffixes see."""
    seen = torch.zeros(*mask.shape[:2], prompt, dtype=torch.bool, device=mask.device)
    seen[:, prefix:] = True
    return torch.cat([mask, seen], dim=2)


def _check_compatible(name: str, config: StreamConfig, vlm: StreamConfig) -> None:
    for field in ("num_heads", "num_kv_heads", "head_dim"):
        if getattr(config, field) != getattr(vlm, field):
            raise ValueError(
                f"stream {name!r} has {field}={getattr(config, field)} but the VLM has {getattr(vlm, field)}: "
                "streams that attend together must agree"
            )
    if len(config.vlm_layers()) != config.depth or max(config.vlm_layers()) >= vlm.depth:
        raise ValueError(f"stream {name!r}: `reads` must name one of the VLM's {vlm.depth} layers per layer")
