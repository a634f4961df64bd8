"""Scripts of `benchmarks/` refuse what would give numbers of something else."""

import math
import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).parents[1]


def script(name: str) -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / f"{name}.py")))


def test_a_difference_that_is_no_number_is_not_told_as_none():
    fidelity = script("fidelity")
    assert fidelity.distance("v_t", torch.tensor([1.0, -3.0]), torch.tensor([1.5, -1.0])) == 2.0
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="v_t: the difference is"):
            fidelity.distance("v_t", torch.tensor([1.0, value]), torch.zeros(2))


def test_data_of_other_flags_are_not_read(tmp_path: Path):
    loader = script("loader")
    config = loader.Config(episodes=1, frames=4, size=32, data=tmp_path / "data")
    assert loader.made(config.data, config) == config.data
    before = sorted(path.stat().st_mtime_ns for path in config.data.rglob("*"))
    assert loader.made(config.data, replace(config, workers=7, rounds=1)) == config.data
    assert sorted(path.stat().st_mtime_ns for path in config.data.rglob("*")) == before, "not made again"
    for changes in ({"frames": 5}, {"seed": 1}, {"size": 16}):
        with pytest.raises(ValueError, match=r"was not made with .*; name another --data, or remove it"):
            loader.made(config.data, replace(config, **changes))
    (tmp_path / "data.json").unlink()  # which is written when the data are whole
    with pytest.raises(ValueError, match="was not made with"):
        loader.made(config.data, config)
