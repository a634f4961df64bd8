"""A small model with random weights, and a batch for it."""

import pytest
import torch

from selfalign.model.policy import VLA
from selfalign.types import Transition
from small_model import make_batch, randomise, small_config


@pytest.fixture
def model() -> VLA:
    torch.manual_seed(0)
    return randomise(VLA(small_config()))


@pytest.fixture
def batch(model) -> Transition:
    return make_batch(model)
