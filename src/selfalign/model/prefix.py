"""What suffixes read beside their own tokens: the cached prefix and, where a model has one, a latent prompt.

Shapes: B batch, T tokens (P of the prefix, n of the prompt), D width of the stream, G key/value heads, K head_dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


@dataclass(frozen=True)
class KeyValues:
    """Keys (after RoPE) and values of one layer."""

    k: Float[Tensor, "B T G K"]
    v: Float[Tensor, "B T G K"]


@dataclass(frozen=True)
class PrefixCache:
    """Everything that a suffix needs of the prefix. It does not depend on W."""

    layers: tuple[KeyValues, ...]
    mask: Bool[Tensor, "B P"]
    hidden: tuple[Float[Tensor, "B P D"], ...] = ()
    """Tokens after each layer but the last, where they were asked for."""

    @property
    def lengths(self) -> Int[Tensor, " B"]:
        """Valid prefix tokens of each sample: where a suffix's positions start."""
        return self.mask.long().sum(1)

    def map(self, fn) -> "PrefixCache":
        """A copy with `fn` applied to every tensor."""
        layers = tuple(KeyValues(fn(kv.k), fn(kv.v)) for kv in self.layers)
        return PrefixCache(layers, fn(self.mask), tuple(fn(x) for x in self.hidden))

    def __getitem__(self, index) -> "PrefixCache":
        """A copy with the batch axis indexed."""
        return self.map(lambda t: t[index])

    def detach(self) -> "PrefixCache":
        return self.map(Tensor.detach)


class LatentPrompt(nn.Module):
    """n learned tokens that every expert reads beside the prefix, as keys and values of the layers that experts read.

    A learned prefix as in prefix-tuning (arXiv 2101.00190). The tokens take no position: suffixes start where they
    start without a prompt. The prefix does not see them, so its cache is the same for every prompt.

    Raises:
        ValueError: less than one token.
    """

    STD = 0.02
    """Of fresh keys and values: all tokens are read alike at first, and say little."""

    def __init__(self, depths: Sequence[int], tokens: int, num_kv_heads: int, head_dim: int):
        super().__init__()
        if tokens < 1:
            raise ValueError(f"a latent prompt has at least 1 token, got {tokens}")
        self.depths, self.tokens = tuple(depths), tokens
        shape = (len(self.depths), tokens, num_kv_heads, head_dim)
        self.k = nn.Parameter(self.STD * torch.randn(shape))
        self.v = nn.Parameter(self.STD * torch.randn(shape))

    def layer(self, depth: int, like: KeyValues) -> KeyValues:
        """Keys and values of one depth, for the batch of others and in their type."""
        row, batch = self.depths.index(depth), len(like.k)
        k, v = (x[row].to(like.k.dtype).expand(batch, -1, -1, -1) for x in (self.k, self.v))
        return KeyValues(k, v)

    def beside(self, cache: PrefixCache) -> PrefixCache:
        """The prefix with the prompt after it; every row of a suffix sees the prompt."""
        layers = list(cache.layers)
        for depth in self.depths:
            read = layers[depth]
            own = self.layer(depth, like=read)
            layers[depth] = KeyValues(torch.cat([read.k, own.k], dim=1), torch.cat([read.v, own.v], dim=1))
        return PrefixCache(tuple(layers), F.pad(cache.mask, (0, self.tokens), value=True))
