"""Bytes and merges."""

import pytest

from selfalign import presets
from selfalign.model.tokenizer import ByteTokenizer


def decode(row, merges=()):
    texts = {258 + i: text.encode() for i, text in enumerate(merges)}
    return b"".join(texts.get(token, bytes([token - 2]) if token < 258 else b"") for token in row if token > 1).decode()


def test_without_merges_every_byte_is_a_token():
    tokens, mask = ByteTokenizer(40).encode(["reach the red cube", "né"])
    assert tokens[0, 0] == 1 and decode(tokens[0].tolist()) == " reach the red cube"
    assert decode(tokens[1].tolist()) == " né" and mask.sum(1).tolist() == [20, 1 + 4]
    assert tokens[1, 5:].max() == 0


def test_merges_shorten_and_nothing_is_lost():
    merges = (" red", " re", " cube")
    tokens, _ = ByteTokenizer(40, merges).encode(["red cube reach"])
    row = tokens[0].tolist()
    assert row[:4] == [1, 258, 260, 259], "the longest merge that fits comes first"
    assert decode(row, merges) == " red cube reach"


def test_words_of_the_simulated_tasks_are_one_token_each():
    config = presets.tiny()
    tokenizer = ByteTokenizer(config.max_token_len, config.prompt_merges)
    tokens, _ = tokenizer.encode(["push the yellow cube to the left"])
    assert tokens.shape == (1, 1 + 7) and tokenizer.vocab_size == config.vocab_size


def test_an_empty_prompt_is_the_begin_token():
    assert ByteTokenizer(4).encode(["", "  "])[0].tolist() == [[1], [1]]


def test_a_prompt_that_is_too_long_is_refused():
    with pytest.raises(ValueError, match="'reach' needs 7 tokens, the model reads 4"):
        ByteTokenizer(4).encode(["reach"])
