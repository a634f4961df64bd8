"""The commands on the pages and beside published results are commands: they are parsed, not run."""

import json
import re
import shlex
from pathlib import Path

import pytest

from selfalign import cli

ROOT = Path(__file__).parents[1]
PAGES = [*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md"), ROOT / "benchmarks" / "README.md"]


def commands(page: str) -> list[list[str]]:
    """The arguments of every `selfalign ...` in the page's blocks of shell commands."""
    blocks = re.findall(r"^```bash\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = [re.search(r"(?:^|\s)(?:-m selfalign\.cli|selfalign) (.*)", line) for line in lines]
    return [shlex.split(match[1], comments=True) for match in found if match]


def understood(arguments: list[str]) -> bool:
    try:
        return cli.main(arguments) == 0
    except SystemExit as stop:  # `--help`, or a mistake
        return stop.code in (0, None)


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch):
    monkeypatch.setattr(cli, "run", lambda command: None)


@pytest.mark.parametrize("page", sorted(PAGES), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_is_understood(page):
    for arguments in commands(page.read_text(encoding="utf-8")):
        assert understood(arguments), shlex.join(arguments)


def test_what_made_the_published_results_is_understood():
    results = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    made = {path.name: json.loads(path.read_text()).get("provenance", {}).get("command", "") for path in results}
    ours = {name: shlex.split(told)[1:] for name, told in made.items() if told.startswith("selfalign ")}
    assert len(ours) > 30
    assert not [name for name, arguments in ours.items() if not understood(arguments)]


def test_commands_are_found():
    page = "```bash\nA=1 selfalign play --out x \\\n  --video  # some\ntorchrun -m selfalign.cli stats --data y\n```\n"
    assert commands(page) == [["play", "--out", "x", "--video"], ["stats", "--data", "y"]]
