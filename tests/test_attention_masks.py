"""The analysis of docs/attention_masks.md: the figure is drawn from the masks, and gradients agree with them."""

import runpy
from pathlib import Path

import pytest

from selfalign.model.alignment import AlignmentLayout

ROOT = Path(__file__).parents[1]
SCRIPT = runpy.run_path(str(ROOT / "benchmarks" / "attention_masks.py"))
OPEN = SCRIPT["OpenPerception"]


def test_the_figure_of_the_docs_is_what_the_masks_say():
    drawn = ROOT / "docs" / "assets" / "attention_masks.svg"
    assert drawn.read_text() == SCRIPT["figure"](), "run benchmarks/attention_masks.py --figure again"


def test_open_perception_leaks_every_label_from_the_second_layer_on():
    layout = OPEN(horizon=3, next_tokens=2)
    labels = SCRIPT["leak"](layout)
    assert labels.sum() == (3 + 2) * 2 + (2 + 3) * 3
    assert not (SCRIPT["reach"](layout.mask(), 1) & labels).any()
    assert (SCRIPT["reach"](layout.mask(), 2) & labels).sum() == labels.sum()


def test_closed_perception_leaks_no_label_through_any_number_of_layers():
    layout = AlignmentLayout(horizon=3, next_tokens=2)
    assert not (SCRIPT["reach"](layout.mask(), layout.length) & SCRIPT["leak"](layout)).any()


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_gradients_say_the_same(depth):
    assert SCRIPT["gradient"](AlignmentLayout, depth) == 0
    assert (SCRIPT["gradient"](OPEN, depth) > 0) == (depth > 1)
