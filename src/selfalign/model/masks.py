"""Attention masks as pure functions. True: the row attends to the column."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def block_mask(starts_block: Bool[Tensor, " T"]) -> Bool[Tensor, "T T"]:
    """Blocks that see themselves and every block before them.

    `starts_block[i]` is True where token i opens a new block (openpi's `ar_mask`): all True is a causal mask, all
    False is full attention.
    """
    block = starts_block.long().cumsum(0)
    return block[None, :] <= block[:, None]


def positions(mask: Bool[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Positions that count valid tokens only, so padding does not move what follows it."""
    return mask.long().cumsum(1) - 1


def suffix_mask(prefix_mask: Bool[Tensor, "B P"], suffix: Bool[Tensor, "T T"]) -> Bool[Tensor, "B T PT"]:
    """Rows of a suffix: every valid prefix token, then what the suffix's own [T, T] mask allows."""
    batch, length = prefix_mask.shape[0], suffix.shape[0]
    return torch.cat([prefix_mask[:, None, :].expand(-1, length, -1), suffix.expand(batch, -1, -1)], dim=2)


def prefix_self_mask(prefix_mask: Bool[Tensor, "B P"]) -> Bool[Tensor, "B P P"]:
    """Full attention among valid prefix tokens.

    Rows of padding attend to themselves alone: an empty row would make the softmax NaN, and nothing reads them.
    """
    valid = prefix_mask[:, :, None] & prefix_mask[:, None, :]
    eye = torch.eye(prefix_mask.shape[1], dtype=torch.bool, device=prefix_mask.device)
    return valid | eye


def bias(mask: Bool[Tensor, "B T S"], dtype: torch.dtype) -> Float[Tensor, "B T S"]:
    """What attention adds to its scores: 0 where the row attends, minus infinity elsewhere.

    Attention makes this of a boolean mask itself, in every layer anew; here it is made once for all layers.
    """
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, -torch.inf)


class TokenBlock(NamedTuple):
    """Tokens that see the same tokens of a suffix, as indices in rising order."""

    rows: list[int]
    sees: list[int]

    @property
    def own(self) -> list[int]:
        """Where the block's tokens stand among those that it sees."""
        return [self.sees.index(row) for row in self.rows]


def blocks(mask: Bool[Tensor, "T T"]) -> list[TokenBlock]:
    """The blocks of a suffix's mask. It is read on the host."""
    rows_of: dict[tuple[bool, ...], list[int]] = {}
    for row, sees in enumerate(mask.tolist()):
        rows_of.setdefault(tuple(sees), []).append(row)
    return [TokenBlock(rows, [i for i, seen in enumerate(sees) if seen]) for sees, rows in rows_of.items()]
