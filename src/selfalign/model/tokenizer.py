"""Prompts to tokens. `tiny` reads bytes; the PaliGemma tokenizer of pi0 has the same interface."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

NUM_BYTES = 256
FIRST_BYTE = 2
"""0 is padding and 1 the begin token; then come the 256 bytes, then the merges."""


class ByteTokenizer:
    """UTF-8 bytes, with some byte strings merged into one token each; what is in no merge is read byte by byte.

    The longest merge that fits comes first, as in a byte-level BPE with a given vocabulary. A word that is one token is
    grounded in one attention step; out of letters, a small model has to put it together first.

    Args:
        max_len: most tokens of a prompt.
        merges: strings that are one token; a space stands before every word of a prompt, the first one included.
    """

    def __init__(self, max_len: int, merges: Sequence[str] = ()):
        if max_len < 2:
            raise ValueError(f"max_len must leave room for the begin token and one byte, got {max_len}")
        self.max_len = max_len
        self.vocab_size = FIRST_BYTE + NUM_BYTES + len(merges)
        ids = {text.encode(): FIRST_BYTE + NUM_BYTES + i for i, text in enumerate(merges)}
        if len(ids) != len(merges) or b"" in ids:
            raise ValueError(f"merges must be distinct and not empty, got {tuple(merges)}")
        self._merges = sorted(ids.items(), key=lambda item: -len(item[0]))

    def encode(self, prompts: Sequence[str]) -> tuple[Int[Tensor, "B L"], Bool[Tensor, "B L"]]:
        """Tokens and their mask, padded to the longest prompt of the batch. An empty prompt is the begin token alone.

        Raises:
            ValueError: a prompt needs more than `max_len` tokens; cutting it would change the task silently.
        """
        rows = [self._tokens(" ".join(("", *prompt.split()))) for prompt in prompts]
        for prompt, row in zip(prompts, rows, strict=True):
            if len(row) > self.max_len:
                raise ValueError(
                    f"the prompt {prompt!r} needs {len(row)} tokens, the model reads {self.max_len}: shorten it"
                )
        length = max(len(row) for row in rows)
        tokens = torch.tensor([row + [0] * (length - len(row)) for row in rows])
        return tokens, tokens > 0

    def _tokens(self, text: str) -> list[int]:
        rest, row = text.encode(), [1]
        while rest:
            match = next(((m, i) for m, i in self._merges if rest.startswith(m)), (rest[:1], FIRST_BYTE + rest[0]))
            row.append(match[1])
            rest = rest[len(match[0]) :]
        return row
