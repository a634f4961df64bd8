"""What stands beside every result."""

import hashlib
import re
import subprocess
from pathlib import Path

import pytest

from selfalign import provenance
from selfalign.provenance import (
    Stopwatch,
    command,
    commit,
    digest,
    read_kept,
    read_own,
    without_places,
    write_json,
)


def test_the_command_tells_no_path_of_the_machine(monkeypatch):
    arguments = ["--checkpoint", "/home/someone/tiny", "--json", "benchmarks/results/a b.json"]
    monkeypatch.setattr("sys.argv", ["/opt/bin/selfalign", *arguments])
    assert command() == "selfalign --checkpoint tiny --json 'benchmarks/results/a b.json'"
    for program in ("cli.py", "__main__.py"):  # `python -m selfalign`, which nobody types as a file
        monkeypatch.setattr("sys.argv", [f"/opt/selfalign/{program}", "demo"])
        assert command() == "selfalign demo"


@pytest.mark.parametrize(
    "value, told",
    [
        ("--checkpoint=/home/me/tiny", "--checkpoint=tiny"),
        ("lerobot:/home/me/a,/home/me/b/", "lerobot:a,b"),
        ("rlds:/home/me/bridge@5", "rlds:bridge@5"),
        ("--data=lerobot:/home/me/a=b", "--data=lerobot:a=b"),
        ("lerobot:data/a,data/b", "lerobot:data/a,data/b"),
        ("ws://10.0.0.1:8000/policy", "ws://10.0.0.1:8000/policy"),
        ("1/2", "1/2"),
        ("/", "/"),
        (Path("/home/me/tiny"), "tiny"),
        (
            {"data": ["/home/me/a"], "tower": {"path": None, "steps": 3}},
            {"data": ["a"], "tower": {"path": None, "steps": 3}},
        ),
    ],
)
def test_places_of_this_machine_are_not_told(value, told):
    assert without_places(value) == told


def test_no_published_result_tells_a_place_of_a_machine():
    results = Path(__file__).parents[1] / "benchmarks/results"
    for path in results.glob("*.json"):
        assert not re.findall(r'"/[^"/]+/[^"]*"', path.read_text()), path.name


def test_the_commit_is_of_the_code_that_was_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = tmp_path / "src/package"
    root.mkdir(parents=True)
    (root / "provenance.py").write_text("X = 1\n")

    def git(*arguments: str) -> str:
        named = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(named, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()

    def afresh() -> str | None:
        """As another process finds it."""
        commit.cache_clear()
        return commit()

    monkeypatch.setattr(provenance, "__file__", str(root / "provenance.py"))
    git("init", "-q")
    assert afresh() is None, "it is not that repository's code"
    git("add", "-A")
    git("commit", "-qm", "one")
    first = git("rev-parse", "HEAD")[:12]
    assert afresh() == first
    (tmp_path / "notes.txt").touch()
    (root / "x.pyc").touch()
    (tmp_path / ".gitignore").write_text("*.pyc\n")
    assert afresh() == first, "nothing of the package"
    (root / "new_module.py").touch()
    assert afresh() == f"{first}+changes"
    git("add", "-A")
    git("commit", "-qm", "two")
    commit.cache_clear()
    Stopwatch()  # a run begins
    second = git("rev-parse", "HEAD")[:12]
    (root / "new_module.py").write_text("Y = 2\n")
    git("commit", "-qam", "three")
    assert commit() == second != git("rev-parse", "HEAD")[:12]
    commit.cache_clear()


def test_a_digest_is_of_the_values():
    told = {"b": [1, None], "a": "x"}
    text = b'{"a": "x", "b": [1, null]}'
    assert digest(told) == digest(dict(reversed(told.items()))) == hashlib.sha256(text).hexdigest()[:16]
    assert digest({**told, "a": "y"}) != digest(told) and len(digest(told, 10)) == 10


@pytest.mark.parametrize(
    "content, kept", [('{"a": 1, "b": 2}', True), ('{"a": 2}', False), ("[1]", False), ("{", False)]
)
def test_a_file_is_kept_if_it_holds_this_measurement(content: str, kept: bool, tmp_path: Path):
    path = tmp_path / "x.json"
    assert read_kept(path, {"a": 1}) is None
    path.write_text(content)
    assert read_kept(path, {"a": 1}) == ({"a": 1, "b": 2} if kept else None)
    path.write_bytes(b"\xff\xfe{")
    assert read_kept(path, {"a": 1}) is None


@pytest.mark.parametrize(
    "content, wrong",
    [
        ('{"a": 1, "s": {"seed": 3, "task": "reach"}}', r"differs in s\.seed; write to another file"),
        ('{"s": {"seed": 2, "task": "push"}}', r"differs in a, s\.task;"),
        ('{"a": 1, "s": {"seed": 2}}', "differs in s;"),
        ("[1]", "is no result"),
        ("{", "is no result"),
    ],
)
def test_an_output_that_holds_something_else_is_not_written_over(content: str, wrong: str, tmp_path: Path):
    path, identity = tmp_path / "x.json", {"a": 1, "s": {"seed": 2, "task": "reach"}}
    assert read_own(path, identity) is None
    path.write_text(content)
    with pytest.raises(ValueError, match=wrong):
        read_own(path, identity)
    write_json(path, {**identity, "b": 2})
    assert read_own(path, identity) == {**identity, "b": 2}


def test_numbers_that_are_not_finite_are_refused_and_the_old_file_stays(tmp_path: Path):
    path = write_json(tmp_path / "new" / "x.json", [1])
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(path, [float("nan")])
    assert path.read_text() == "[\n 1\n]\n"
