"""Damaged checkpoints: a clear error that names the file, or the very same policy; never another exception."""

import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import selfalign as sa
from calibrations import make_calibration
from damage import change_json, check_damage, exchange, flip_bits, overwrite, remove, truncate
from selfalign.checkpoint import save_checkpoint
from selfalign.data.normalize import NormStats
from selfalign.model.policy import VLA
from selfalign.policy import Policy
from small_model import randomise, small_config


def flip_header(root: Path, rng: np.random.Generator) -> str:
    """Where the weights' names, types and places stand."""
    path = root / "model.safetensors"
    data = bytearray(path.read_bytes())
    position = int(rng.integers(8 + struct.unpack("<Q", data[:8])[0]))
    data[position] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)
    return f"a bit of byte {position} of the weights' header"


def _edit_header(root: Path, change: Callable[[dict], str]) -> str:
    path = root / "model.safetensors"
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    what = change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    return what


def swap_tensors(root: Path, rng: np.random.Generator) -> str:
    """Two tensors of one shape (or any two) stand under each other's names."""

    def change(header: dict) -> str:
        names = [name for name in header if name != "__metadata__"]
        first = names[rng.integers(len(names))]
        alike = [n for n in names if header[n]["shape"] == header[first]["shape"] and n != first] or names
        second = alike[rng.integers(len(alike))]
        header[first], header[second] = header[second], header[first]
        return f"{first} and {second} swapped"

    return _edit_header(root, change)


def change_type(root: Path, rng: np.random.Generator) -> str:
    def change(header: dict) -> str:
        names = [name for name in header if name != "__metadata__"]
        name = names[rng.integers(len(names))]
        header[name]["dtype"] = ("I32", "F16", "BF16", "F64", "U8", "X9", None)[rng.integers(7)]
        return f"{name} as {header[name]['dtype']}"

    return _edit_header(root, change)


def drop_tensor(root: Path, rng: np.random.Generator) -> str:
    def change(header: dict) -> str:
        names = [name for name in header if name != "__metadata__"]
        name = names[rng.integers(len(names))]
        del header[name]
        return f"without {name}"

    return _edit_header(root, change)


KINDS = (
    truncate, flip_bits, flip_header, overwrite, remove, exchange, swap_tensors, change_type, drop_tensor, change_json,
)  # fmt: skip


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    rng = np.random.default_rng(0)
    model = randomise(VLA(small_config(action_dim=8, state_dim=8, vocab_size=258)))
    stats = NormStats.from_arrays(rng.normal(size=(9, 4)), rng.normal(size=(9, 4)))
    policy = Policy.from_model(model)
    policy = replace(policy, stats=stats, calibration=make_calibration(policy.fingerprint()))
    return save_checkpoint(policy, tmp_path_factory.mktemp("checkpoint") / "clean")


def reading(root: Path):
    """Everything that acting and aligning would see of a checkpoint."""
    policy = sa.load(root)
    assert policy.stats is not None
    return policy.fingerprint(), policy.settings, policy.stats.to_dict(), type(policy.tokenizer), policy.calibration


def test_damage_is_an_error_or_harmless(clean, tmp_path):
    check_damage(clean, tmp_path, range(200), KINDS, reading, errors=0.8)


def test_a_changed_number_is_found(clean, tmp_path):
    """Nothing but its sum tells a setting of 101 steps from one of 100."""
    root = shutil.copytree(clean, tmp_path / "changed")
    told = json.loads((root / "settings.json").read_text())
    told["align"]["steps"] += 1
    (root / "settings.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match=r"settings\.json differs from what was written"):
        sa.load(root)
    del told["sums"]
    (root / "settings.json").write_text(json.dumps(told))
    assert sa.load(root).settings.steps == told["align"]["steps"], "changed on purpose, or from before there were sums"


def test_what_is_wrong_is_one_plain_sentence(clean, tmp_path):
    root = shutil.copytree(clean, tmp_path / "changed")
    config, path = root / "config.json", root / "settings.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(
        ValueError, match=rf"^{config} differs from what was written; copy the whole checkpoint again, or [^()]*$"
    ):
        sa.load(root)
    path.write_text(json.dumps({"format": "selfalign-settings-9"}))
    with pytest.raises(ValueError, match=rf"^{path} is of another version: its format is 'selfalign-settings-9'"):
        sa.load(root)
    path.write_text("[]")
    with pytest.raises(ValueError, match=rf"^{path} is not a JSON object$"):
        sa.load(root)
    path.write_text(json.dumps({"format": "selfalign-settings-1", "tokenizer": "bytes"}))
    with pytest.raises(
        ValueError, match=rf"^{path} is damaged or of another version: it lacks 'fingerprint'; copy the"
    ):
        sa.load(root)


def test_another_layout_of_the_settings_is_the_same(clean, tmp_path):
    root = shutil.copytree(clean, tmp_path / "laid out")
    path = root / "settings.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=7, sort_keys=True))
    assert reading(root) == reading(clean)
