"""LoRA: starts as nothing, moves only its adapters in the parts that it adapts, and is merged in what is shipped."""

import sys

import pytest
import torch

from align.rehearsing import seeded_state, tiny_model
from selfalign.model.losses import FlowNoise
from selfalign.model.weights import unique_tensors
from selfalign.train import checkpoint
from selfalign.train.export import finished
from selfalign.train.lora import LoraSettings, add_lora
from selfalign.train.parts import part_of
from selfalign.train.step import train_step

SETTINGS = LoraSettings(rank=2, alpha=4.0, parts=("vlm", "alignment"))


def adapted():
    pytest.importorskip("peft")
    return add_lora(tiny_model(), SETTINGS)


def test_adapters_start_as_no_update(small_sources):
    plain = train_step(seeded_state(small_sources))
    with_adapters = train_step(seeded_state(small_sources, model=adapted()))
    losses = {name: value for name, value in plain.items() if name.startswith("loss/")}
    assert {name: with_adapters[name] for name in losses} == pytest.approx(losses, rel=1e-6)


def test_only_adapters_move_in_the_parts_that_have_them(small_sources):
    model = adapted()
    state = seeded_state(small_sources, model=model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(3):
        train_step(state)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert {part_of(name) for name in moved} == {"vision", "vlm", "action", "alignment", "ttt", "prior"}
    assert all(".lora_" in name for name in moved if part_of(name) in SETTINGS.parts)
    assert not any(".lora_" in name for name in moved if part_of(name) not in SETTINGS.parts)


def test_what_is_shipped_is_the_plain_model_with_the_updates_in_it(small_sources, tmp_path):
    model = adapted()
    state = seeded_state(small_sources, model=model)
    for _ in range(3):
        train_step(state)
    shipped = finished(state)
    assert unique_tensors(shipped).keys() == unique_tensors(tiny_model()).keys()
    part = state.objective.draw(1)[0].play
    assert isinstance(part.noise, FlowNoise)
    losses = [
        m.losses(part.transition, noise=part.noise, time=part.time, parts=("alignment",)).scalars()
        for m in (model, shipped)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)

    path = checkpoint.save(state, tmp_path)
    resumed = seeded_state(small_sources, model=adapted())
    checkpoint.restore(resumed, path)
    expected = unique_tensors(model)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in unique_tensors(resumed.model).items())


def test_parts_without_blocks_are_refused():
    pytest.importorskip("peft")
    with pytest.raises(ValueError, match="blocks; prior, vision has none"):
        add_lora(tiny_model(), LoraSettings(rank=2, parts=("vlm", "vision", "prior")))


def test_without_peft_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"selfalign\[lora\]"):
        add_lora(tiny_model(), SETTINGS)
