"""A device that is not there is told before the work."""

import pytest
import torch

from selfalign.model.device import existing_device


def test_a_machine_without_cuda_says_so(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert existing_device("cpu") == existing_device(torch.device("cpu")) == torch.device("cpu")
    for name in ("cuda", "cuda:1", torch.device("cuda")):
        with pytest.raises(ValueError, match=r'"cuda.*this torch has no CUDA or finds no GPU .* take "cpu"'):
            existing_device(name)


def test_a_gpu_too_many_is_told(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert existing_device("cuda") == torch.device("cuda") and existing_device("cuda:1").index == 1
    with pytest.raises(ValueError, match='no device "cuda:2": torch finds 2, counted from 0'):
        existing_device("cuda:2")


def test_what_is_no_device_is_told():
    with pytest.raises(ValueError, match='no device is called "gpu": say "cpu", "cuda"'):
        existing_device("gpu")
