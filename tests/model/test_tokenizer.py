"""Bytes and merges; PaliGemma's sentencepiece model with the prompts of pi0 and pi0.5."""

import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from safetensors.numpy import load_file

from checkpoints import small_sentencepiece
from selfalign import presets
from selfalign.model.tokenizer import ByteTokenizer, PaliGemmaTokenizer, discretize_state


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


# ---- PaliGemma -----------------------------------------------------------------------------------------------------

UNITS = Path(__file__).parents[1] / "data" / "openpi_units" / "units.safetensors"


@pytest.fixture(scope="module")
def pieces() -> bytes:
    return small_sentencepiece()


@pytest.fixture
def model_file(pieces, tmp_path) -> Path:
    path = tmp_path / "paligemma_tokenizer.model"
    path.write_bytes(pieces)
    return path


@pytest.fixture
def reader(pieces):
    return sentencepiece.SentencePieceProcessor(model_proto=pieces)


def test_pi0s_prompt_is_the_task_and_a_line_break_of_its_own(model_file, reader):
    tokens, mask = PaliGemmaTokenizer(model_file).encode([" pick_up the\nred cube ", "pick"])
    first = [2, *reader.encode("pick up the red cube"), *reader.encode("\n")]
    second = [2, *reader.encode("pick"), *reader.encode("\n")]
    assert tokens.tolist() == [first, second + [0] * (len(first) - len(second))]
    assert mask.sum(1).tolist() == [len(first), len(second)] and mask[1, : len(second)].all()


def test_pi05s_prompt_tells_the_state(model_file, reader):
    states = [np.array([-1.0, 0.999, 0.0, -1.5]), np.array([0.25, 2.0])]
    tokens, mask = PaliGemmaTokenizer(model_file, 200, reads_state=True).encode(["push the_cube", "pick"], states)
    texts = [reader.decode(row[valid].tolist()) for row, valid in zip(tokens, mask, strict=True)]
    assert texts == [
        "Task: push the cube, State: 0 255 128 -1;\nAction: ",
        "Task: pick, State: 160 255;\nAction: ",
    ]
    assert tokens[:, 0].tolist() == [2, 2]


def test_the_state_is_discretised_as_openpis():
    units = load_file(UNITS)
    np.testing.assert_array_equal(discretize_state(units["discretise.in"]), units["discretise.out"])


def test_an_empty_prompt_is_the_begin_token_and_the_line_break(model_file, reader):
    assert PaliGemmaTokenizer(model_file).encode([""])[0].tolist() == [[2, *reader.encode("\n")]]


def test_bytes_tell_no_state():
    with pytest.raises(ValueError, match="tell no state"):
        ByteTokenizer(40).encode(["reach"], [np.zeros(2)])


def test_a_prompt_is_never_cut(model_file):
    with pytest.raises(ValueError, match=r"'pick up the red cube' needs \d+ tokens, the model reads 3: shorten it"):
        PaliGemmaTokenizer(model_file, 3).encode(["pick up the red cube"])


@pytest.mark.parametrize(
    "name", ["paligemma_tokenizer.model", "tokenizer.model", "big_vision/paligemma_tokenizer.model"]
)
def test_a_directory_is_searched(pieces, tmp_path, name):
    path = tmp_path / "cache" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(pieces)
    assert PaliGemmaTokenizer(tmp_path / "cache").vocab_size > 10


def test_an_absent_file_comes_with_instructions(tmp_path):
    for path in (tmp_path, tmp_path / "absent.model"):
        with pytest.raises(FileNotFoundError, match=r"not found: .*Download https://storage.googleapis.com/big_vision"):
            PaliGemmaTokenizer(path)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"\x0a\x03abc" * 9])
def test_a_file_that_is_no_sentencepiece_model_is_said(tmp_path, content):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"tokenizer.model \(\d+ bytes\) is not a sentencepiece model. Download"):
        PaliGemmaTokenizer(path)


def test_without_sentencepiece_the_extra_is_named(model_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ImportError, match=r"pip install 'selfalign\[pi\]'"):
        PaliGemmaTokenizer(model_file)
