"""Whole systems at their real sizes, on the meta device: no memory is used."""

import re
from pathlib import Path

import pytest
import torch

from selfalign import presets
from selfalign.commands.inspect import model_table
from selfalign.model.config import VLAConfig
from selfalign.model.cost import align_step, meta_model, sampling_phases
from selfalign.model.losses import ALIGNMENT
from selfalign.model.openpi import CheckpointSettings, infer_config
from selfalign.model.openpi_names import tensor_names
from selfalign.model.policy import VLA


def build(config: VLAConfig) -> VLA:
    with torch.device("meta"):
        return VLA(config)


def size(model: VLA) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("preset", "tensors", "billions"), [("pi0", 778, 3.50), ("pi05", 813, 3.62)])
def test_full_sizes_are_openpis(preset, tensors, billions):
    """openpi has two more: the expert's head, which nothing reads, and the tied embedding under its second name."""
    config = presets.get(preset)
    model = build(config)
    assert len(tensor_names(model)) == len(list(model.parameters())) == tensors - 2
    assert size(model) + config.vocab_size * config.action.width == pytest.approx(billions * 1e9, rel=1e-3)


@pytest.mark.parametrize("preset", ["pi0", "pi05"])
def test_a_checkpoint_of_full_size_is_recognised_without_a_config(preset):
    model = build(presets.get(preset))
    shapes = {theirs: tuple(model.get_parameter(ours).shape) for ours, theirs in tensor_names(model).items()}
    assert infer_config(shapes, CheckpointSettings()) == presets.get(preset)


def test_small_is_small():
    assert 50e6 < size(build(presets.small())) < 100e6


def test_layers_that_a_shallower_expert_reads():
    assert presets.evenly_spaced(18, 18) == tuple(range(18))
    assert presets.evenly_spaced(8, 18) == (1, 3, 5, 8, 10, 12, 14, 17)
    assert presets.evenly_spaced(6, 18) == (2, 5, 8, 11, 14, 17)
    assert presets.evenly_spaced(4, 18) == (3, 8, 12, 17)
    with pytest.raises(ValueError, match="1 to 18 layers of the VLM, got 19"):
        presets.pi0_aligned(alignment_depth=19)


@pytest.mark.parametrize("preset", [presets.pi0_aligned, presets.pi05_aligned])
@pytest.mark.parametrize("depth", [18, 8, 6, 4])
def test_aligned_presets_read_and_write_contexts_where_they_say(preset, depth):
    model = build(preset(alignment_depth=depth, ttt_heads=2, ttt_head_dim=32))
    reads = presets.evenly_spaced(depth, 18)
    assert tuple(model.mixture.ttt_slots) == reads
    assert len(model.mixture.experts[ALIGNMENT].blocks) == depth
    assert [tuple(w.shape) for w in model.prior().W1] == [(2, 32, 32)] * depth


@pytest.mark.parametrize(("positions", "layers"), [("all", 18), ("none", 0), ((0, 17), 2)])
def test_ttt_positions_can_be_chosen(positions, layers):
    assert len(build(presets.pi0_aligned(ttt_positions=positions)).ttt_layers) == layers


def test_where_the_state_goes():
    assert build(presets.pi0()).state_in is not None
    assert build(presets.pi05()).state_in is None
    assert build(presets.pi05_aligned()).state_in is not None
    assert build(presets.pi05_aligned(state_token=False)).state_in is None


@pytest.mark.parametrize("preset", sorted(presets.PRESETS))
def test_every_preset_runs_at_its_real_size_on_the_meta_device(preset):
    model = meta_model(presets.get(preset))
    assert sum(phase.cost.flops for phase in sampling_phases(model)) > 0
    assert (align_step(model) is None) == (model.config.alignment is None)


TRAINING = (Path(__file__).parents[1] / "docs/training.md").read_text()
MEMORY = {row[0]: row[1:] for row in re.findall(r"^\| `(\w+)`" + r" \| ?([\d,.]*)" * 4 + r" \|$", TRAINING, re.M)}


@pytest.mark.parametrize("preset", sorted(presets.PRESETS))
def test_the_memory_on_the_page_is_what_inspect_says(preset):
    table = model_table(meta_model(presets.get(preset)), preset)
    told = {part: row for part, *row in zip(*(column.cells for column in table.columns), strict=True)}
    count, _, weights = told["total"]
    training = told["pretraining: weights, gradients, moments"][1]
    slot = told.get("and for each slot of it", ["", ""])[1]
    assert MEMORY[preset] == (f"{int(count.replace(',', '')) / 1e6:,.1f}", weights, training, slot)
