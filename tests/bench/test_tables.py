import io
import re

import pytest
from rich.console import Console

from selfalign.bench.adapt import summarise
from selfalign.bench.tables import label, print_adapt


def printed(result: dict, width: int = 80) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    print_adapt(result, console)
    return console.export_text()


def share(value: float) -> dict:
    return {"value": value, "low": value, "high": value, "successes": round(20 * value), "episodes": 20}


@pytest.fixture
def result() -> dict:
    conditions = ("before", "after_10", "after_30", "after_100", "after_300", "aligned", "random", "swap")
    levels = (0.1, 0.85, 0.9, 0.95, 1.0, 0.95, 0.05, 0.0)
    rows = [
        {
            "role": role,
            "index": index,
            "name": f"kinova3_panda-ee_delta-az+12-el40-abc12{index}",
            "body": {"arm": "kinova3"},
            "success": {"oracle": share(0.95)} if role == "source" else dict(zip(conditions, map(share, levels))),
            "verdict": {"accepted": True, "before": 1.0, "after": 0.5},
            "seconds": {"play": 8.0, "align": 21.0, "evaluate": 55.0},
            "context_megabytes": 0.04,
        }
        for role in ("heldout", "source")
        for index in range(3)
    ]
    settings = {"task": "reach", "scenario": "camera", "seed": 3, "episodes": 20, "play": 20}
    return {"settings": settings, "summary": summarise(rows, conditions), "bodies": rows}


def test_tables_fit_a_terminal_of_80_columns(result: dict):
    text = printed(result)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert re.search(r"0 kinova3 abc120 +10 +85 +90 +95 +100 +95 +5 +0 +accept", text)
    assert re.search(r"oracle \(seen bodies, aligned\) +95 % \[86, 98\] +95 %", text)
    assert "aligned / oracle 100 %" in text.replace("\n", " ")


def test_labels_are_words():
    assert label("after_30") == "after 30 steps"
    assert label("swap") == "another body's context"
