import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from selfalign.commands.demo import DemoConfig, run

# Play as short as in these tests may leave the gripper alone.
pytestmark = pytest.mark.filterwarnings("ignore:near-constant dimensions")

VOID = {"meta", "img", "line", "circle", "polyline"}


class Balanced(HTMLParser):
    """Fails on tags that are not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.loaded += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


def test_demo_writes_a_page_that_needs_nothing_else(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    out = tmp_path / "demo"
    config = DemoConfig(checkpoint, out, ("camera", "action"), play=2, play_length=11, episodes=1, films=1)
    result = run(config)
    assert sorted(path.name for path in out.iterdir()) == ["before_after.gif", "report.html", "report.json"]
    assert json.loads((out / "report.json").read_text()) == result
    assert [row["scenario"] for row in result["bodies"]] == ["camera", "action"]
    assert all(list(row["success"]) == ["before", "aligned"] for row in result["bodies"])
    page = (out / "report.html").read_text(encoding="utf-8")
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert len(parser.loaded) == 2
    assert all(source.startswith("data:image/gif;base64,") for source in parser.loaded)
    assert not re.search(r"https?://|@import|<script", page)
    for row in result["bodies"]:
        assert row["name"] in page
    assert (out / "before_after.gif").stat().st_size <= 1_500_000
    assert Image.open(out / "before_after.gif").n_frames > 10
    assert "report.html" in capsys.readouterr().out.replace("\n", "")


def test_errors_come_before_the_work(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="selfalign pretrain"):
        run(DemoConfig(tmp_path / "none", tmp_path / "out"), show=False)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="an episode for each film"):
        DemoConfig(episodes=1, films=2)
    with pytest.raises(ValueError, match="unknown scenarios"):
        DemoConfig(scenarios=())
