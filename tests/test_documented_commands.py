"""The commands on the pages are commands: they are parsed, not run."""

import re
import shlex
from pathlib import Path

import pytest

from selfalign import cli

PAGES = Path(__file__).parents[1] / "docs"


def commands(page: str) -> list[list[str]]:
    """The arguments of every `selfalign ...` in the page's blocks of shell commands."""
    blocks = re.findall(r"^```bash\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = [re.search(r"(?:^|\s)(?:-m selfalign\.cli|selfalign) (.*)", line) for line in lines]
    return [shlex.split(match[1], comments=True) for match in found if match]


@pytest.mark.parametrize("page", sorted(path.name for path in PAGES.glob("*.md")))
def test_every_command_is_understood(page, monkeypatch):
    monkeypatch.setattr(cli, "run", lambda command: None)
    for arguments in commands((PAGES / page).read_text(encoding="utf-8")):
        try:
            assert cli.main(arguments) == 0
        except SystemExit as stop:
            assert stop.code in (0, None), f"{page}: selfalign {shlex.join(arguments)}"


def test_commands_are_found():
    page = "```bash\nA=1 selfalign play --out x \\\n  --video  # some\ntorchrun -m selfalign.cli stats --data y\n```\n"
    assert commands(page) == [["play", "--out", "x", "--video"], ["stats", "--data", "y"]]
