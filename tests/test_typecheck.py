"""The run-time shape checks that conftest.py turns on do fire."""

import pytest
import torch
from jaxtyping import TypeCheckError

from selfalign.types import ActionChunk


def test_agreeing_shapes_pass():
    chunk = ActionChunk(torch.zeros(2, 3, 4), step_mask=torch.ones(2, 3, dtype=torch.bool))
    assert chunk.loss_mask().shape == (2, 3, 4)


@pytest.mark.parametrize("mask", [torch.ones(2, 5, dtype=torch.bool), torch.ones(2, 3)], ids=["shape", "dtype"])
def test_a_wrong_mask_is_refused(mask: torch.Tensor):
    with pytest.raises(TypeCheckError):
        ActionChunk(torch.zeros(2, 3, 4), step_mask=mask)
