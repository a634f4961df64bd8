"""Small parts against numbers of openpi's own functions."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from selfalign.model.layers import time_embedding
from selfalign.model.masks import block_mask


@pytest.fixture(scope="module")
def units() -> dict[str, torch.Tensor]:
    return load_file(Path(__file__).parents[1] / "data" / "openpi_units" / "units.safetensors")


def test_flow_time_is_embedded_as_openpis(units):
    torch.testing.assert_close(time_embedding(units["time.in"], 32), units["time.emb32"], rtol=0, atol=1e-6)
    wide = time_embedding(units["time.in"], 1024)[:, ::16]
    torch.testing.assert_close(wide, units["time.emb1024"], rtol=0, atol=1e-6)


def test_attention_masks_are_openpis(units):
    for starts, valid, expected in zip(units["mask.ar"], units["mask.pad"], units["mask.att2d"], strict=True):
        ours = block_mask(starts.bool()) & valid[:, None] & valid[None, :]
        assert torch.equal(ours, expected)
