"""Prompts to tokens. `tiny` reads bytes; the PaliGemma tokenizer of pi0 and pi0.5 has the same interface."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
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

    reads_state = False

    def __init__(self, max_len: int, merges: Sequence[str] = ()):
        if max_len < 2:
            raise ValueError(f"max_len must leave room for the begin token and one byte, got {max_len}")
        self.max_len = max_len
        self.vocab_size = FIRST_BYTE + NUM_BYTES + len(merges)
        ids = {text.encode(): FIRST_BYTE + NUM_BYTES + i for i, text in enumerate(merges)}
        if len(ids) != len(merges) or b"" in ids:
            raise ValueError(f"merges must be distinct and not empty, got {tuple(merges)}")
        self._merges = sorted(ids.items(), key=lambda item: -len(item[0]))

    def encode(
        self, prompts: Sequence[str], states: Sequence[Float[np.ndarray, " _"]] | None = None
    ) -> tuple[Int[Tensor, "B L"], Bool[Tensor, "B L"]]:
        """Tokens and their mask, padded to the longest prompt of the batch. An empty prompt is the begin token alone.

        Raises:
            ValueError: a prompt needs more than `max_len` tokens (cutting it would change the task silently), or
                states are given, which this format does not tell.
        """
        if states is not None:
            raise ValueError("the byte tokenizer's prompts tell no state; the model reads it as a token of its own")
        return _padded(prompts, [self._tokens(" ".join(("", *prompt.split()))) for prompt in prompts], self.max_len)

    def _tokens(self, text: str) -> list[int]:
        rest, row = text.encode(), [1]
        while rest:
            match = next(((m, i) for m, i in self._merges if rest.startswith(m)), (rest[:1], FIRST_BYTE + rest[0]))
            row.append(match[1])
            rest = rest[len(match[0]) :]
        return row


STATE_BINS = 256
PALIGEMMA_FILES = (
    "paligemma_tokenizer.model",
    "big_vision/paligemma_tokenizer.model",
    "tokenizer.model",
    "tokenizer/tokenizer.model",
)
"""Where a directory has the tokenizer: as published, as openpi's cache keeps it, as in a Hugging Face repository, or in
a checkpoint of LeRobot."""
HOW_TO_GET_IT = (
    "Download https://storage.googleapis.com/big_vision/paligemma_tokenizer.model (4 MB; the same file is "
    "tokenizer.model of google/paligemma-3b-pt-224 on the Hugging Face hub) and give its path, or the directory"
)


class PaliGemmaTokenizer:
    """PaliGemma's sentencepiece model with the prompt formats of pi0 and pi0.5, as in openpi.

        pi0     <bos> prompt, then "\n" as a piece of its own
        pi0.5   <bos> "Task: prompt, State: 12 255 0;\nAction: "         the state in 256 bins

    Args:
        path: the sentencepiece model, or a directory that has it (`PALIGEMMA_FILES`).
        max_len: most tokens of a prompt: 48 for pi0, 200 for pi0.5.
        reads_state: pi0.5's format, which needs a state with every prompt but those of alignment: they are state-free
            and take pi0's.

    Raises:
        ImportError: sentencepiece is not installed.
        FileNotFoundError: no such file; the message says where to get it.
        ValueError: the file is not a sentencepiece model.
    """

    def __init__(self, path: str | Path, max_len: int = 48, *, reads_state: bool = False):
        if max_len < 2:
            raise ValueError(f"max_len must leave room for the begin token and one piece, got {max_len}")
        self.max_len, self.reads_state = max_len, reads_state
        self._pieces = _load_sentencepiece(_find_tokenizer(Path(path).expanduser()))
        self.vocab_size: int = self._pieces.vocab_size()

    def encode(
        self, prompts: Sequence[str], states: Sequence[Float[np.ndarray, " _"]] | None = None
    ) -> tuple[Int[Tensor, "B L"], Bool[Tensor, "B L"]]:
        """Tokens and their mask, padded with 0 to the longest prompt of the batch (openpi pads to `max_len`).

        Args:
            states: each robot's normalised state, not padded; given, the prompts are in pi0.5's format.

        Raises:
            ValueError: a prompt needs more than `max_len` tokens. openpi cuts it, which changes the task.
        """
        if states is None:
            return _padded(prompts, [self._pi0(_cleaned(prompt)) for prompt in prompts], self.max_len)
        rows = [self._pi05(_cleaned(prompt), state) for prompt, state in zip(prompts, states, strict=True)]
        return _padded(prompts, rows, self.max_len)

    def _pi0(self, prompt: str) -> list[int]:
        return self._pieces.encode(prompt, add_bos=True) + self._pieces.encode("\n")

    def _pi05(self, prompt: str, state: np.ndarray) -> list[int]:
        bins = " ".join(map(str, discretize_state(state)))
        return self._pieces.encode(f"Task: {prompt}, State: {bins};\nAction: ", add_bos=True)


class MissingTokenizer:
    """Stands where PaliGemma's tokenizer was not found: what needs no words works, `encode` says what to do.

    Args:
        reason: what was looked for and where.
        reads_state: as in `PaliGemmaTokenizer`.
    """

    def __init__(self, reason: str, *, reads_state: bool = False):
        self.reason, self.reads_state = reason, reads_state

    def encode(
        self, prompts: Sequence[str], states: Sequence[Float[np.ndarray, " _"]] | None = None
    ) -> tuple[Int[Tensor, "B L"], Bool[Tensor, "B L"]]:
        """Raises `FileNotFoundError`."""
        raise FileNotFoundError(f"{self.reason} Then: sa.load(directory, tokenizer=PATH)")


def find_paligemma(
    directory: str | Path, path: str | Path | None, max_len: int, *, reads_state: bool
) -> PaliGemmaTokenizer | MissingTokenizer:
    """The tokenizer at `path`; without one, that which lies in the checkpoint `directory`, if it does.

    Raises:
        FileNotFoundError: there is none at `path`.
    """
    if path is not None:
        return PaliGemmaTokenizer(path, max_len, reads_state=reads_state)
    try:
        return PaliGemmaTokenizer(directory, max_len, reads_state=reads_state)
    except FileNotFoundError as error:
        return MissingTokenizer(str(error), reads_state=reads_state)


def discretize_state(state: Float[np.ndarray, "*lead S"]) -> Int[np.ndarray, "*lead S"]:
    """Normalised numbers as bins of width 2 / 256: [-1, 1) gives 0 to 255, what lies above 255, what lies below -1."""
    return np.digitize(state, np.linspace(-1, 1, STATE_BINS + 1)[:-1]) - 1


def _cleaned(prompt: str) -> str:
    return prompt.strip().replace("_", " ").replace("\n", " ")


def _padded(
    prompts: Sequence[str], rows: list[list[int]], max_len: int
) -> tuple[Int[Tensor, "B L"], Bool[Tensor, "B L"]]:
    """The rows with zeros on the right, and True where they are real; `ValueError` if one is longer than max_len."""
    for prompt, row in zip(prompts, rows, strict=True):
        if len(row) > max_len:
            start = repr(prompt[:60])
            raise ValueError(f"the prompt {start} needs {len(row)} tokens, the model reads {max_len}: shorten it")
    lengths = torch.tensor([len(row) for row in rows])
    length = max(len(row) for row in rows)
    tokens = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    return tokens, torch.arange(length) < lengths[:, None]


def _find_tokenizer(path: Path) -> Path:
    candidates = [path / name for name in PALIGEMMA_FILES] if path.is_dir() else [path]
    found = next((file for file in candidates if file.is_file()), None)
    if found is None:
        where = f"{path} has none of {', '.join(PALIGEMMA_FILES)}" if path.is_dir() else f"{path} does not exist"
        raise FileNotFoundError(f"PaliGemma's tokenizer was not found: {where}. {HOW_TO_GET_IT}.")
    return found


def _load_sentencepiece(path: Path) -> Any:
    try:
        import sentencepiece
    except ImportError as error:
        raise ImportError("PaliGemma's tokenizer needs sentencepiece: pip install 'selfalign[pi]'") from error
    data = path.read_bytes()
    try:
        if not data:
            raise RuntimeError("it is empty")
        return sentencepiece.SentencePieceProcessor(model_proto=data)
    except RuntimeError as error:
        raise ValueError(f"{path} ({len(data):,} bytes) is not a sentencepiece model. {HOW_TO_GET_IT}.") from error
