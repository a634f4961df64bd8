"""Prompts to tokens. `tiny` reads bytes; the PaliGemma tokenizer of pi0 has the same interface."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor


class ByteTokenizer:
    """UTF-8 bytes, shifted by two for the padding (0) and the begin token (1)."""

    vocab_size = 258

    def __init__(self, max_len: int):
        if max_len < 2:
            raise ValueError(f"max_len must leave room for the begin token and one byte, got {max_len}")
        self.max_len = max_len

    def encode(self, prompts: Sequence[str]) -> tuple[Int[Tensor, "B L"], Bool[Tensor, "B L"]]:
        """Tokens and their mask, padded to the longest prompt of the batch.

        Raises:
            ValueError: a prompt needs more than `max_len` tokens; cutting it would change the task silently.
        """
        rows = [[1, *(byte + 2 for byte in prompt.strip().encode())] for prompt in prompts]
        for prompt, row in zip(prompts, rows, strict=True):
            if len(row) > self.max_len:
                raise ValueError(
                    f"the prompt {prompt!r} needs {len(row)} tokens, the model reads {self.max_len}: shorten it"
                )
        length = max(len(row) for row in rows)
        tokens = torch.tensor([row + [0] * (length - len(row)) for row in rows])
        return tokens, tokens > 0
