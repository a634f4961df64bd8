"""What the pages say is what their scripts give."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("matplotlib")
ROOT = Path(__file__).parents[1]


def script(name: str) -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / f"{name}.py")))


def test_the_page_of_results_is_what_the_results_say():
    page = script("results_page").page(ROOT / "benchmarks/results", "assets/experiment_results.svg")
    assert page == (ROOT / "docs/experiment_results.md").read_text(), "run python benchmarks/results_page.py"


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_the_readmes_tables_are_what_the_results_say(name):
    tables, text = script("readme_tables"), (ROOT / name).read_text(encoding="utf-8")
    told = tables.with_tables(text, ROOT / "benchmarks/results", tables.WORDS[name])
    assert told == text, "run python benchmarks/readme_tables.py"


def test_markdown_tables_keep_their_columns():
    table = script("results_page").markdown(("a", "b"), [["1|2", "3"]])
    assert table == "| a | b |\n| --- | --- |\n| 1\\|2 | 3 |"


def test_which_tokens_the_gated_layers_mix():
    gating = script("ttt_gating")
    inner = gating.replace(gating.CONFIG, meta_learning=True)
    fixed, one_way, both = (
        gating.reach(module) > -10
        for module in (gating.Gated(gating.CONFIG), gating.Gated(inner), gating.BothWays(inner))
    )
    assert (fixed == gating.torch.eye(gating.TOKENS, dtype=bool)).all(), "W as an argument: each token by itself"
    assert (one_way == gating.torch.ones_like(one_way).tril()).all(), "the tokens before"
    assert both.all(), "and the tokens after"


def test_the_gate_lets_nothing_through_at_zero():
    gating = script("ttt_gating")
    assert gating.gate(0.0) == (0.0, 0.0)
    assert all(x > 0 for x in gating.gate(0.1))


def test_checkpointing_keeps_less_and_computes_at_most_a_third_more():
    counting = script("checkpointing")
    model = counting.small_model(4)
    plain, work = counting.measure(model)
    kept, more = counting.measure(counting.recompute_blocks(model))
    assert kept < 0.3 * plain
    assert work < more < 4 / 3 * work


def test_infonce_in_the_figure_pushes_the_nearest_hardest():
    contrast = script("contrastive")
    near, far = (float(contrast.loss(contrast.torch.tensor(x), 0.07)) for x in (0.95, 0.0))
    assert near > 10 * far
