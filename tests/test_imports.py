"""Dependencies flow one way: a module imports its own layer and the ones before it, never a later one."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "selfalign"
# model and embodiments share a level: both build on types only, and neither knows the other.
LEVELS = [
    {"types", "workers", "configs", "calibration", "acting"},
    {"cluster"},
    {"model", "embodiments"},
    {"data"},
    {"settings", "provenance", "observations"},
    {"policy"},
    {"checkpoint"},
    {"train"},
    {"align"},
    {"online", "robots"},
    {"sim", "serve"},
    {"baselines"},
    {"bench"},
    {"report"},
    {"presets"},
    {"commands"},
    {"ablation"},
    {"cli"},
]
LEVEL = {part: index for index, parts in enumerate(LEVELS) for part in parts}
FILES = sorted(path for path in ROOT.rglob("*.py") if path not in (ROOT / "__init__.py", ROOT / "__main__.py"))


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_parts(path: Path) -> Iterator[tuple[int, str]]:
    """(line, part of selfalign) of each import in a file, wherever in the file it stands."""
    package = ("selfalign", *path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            # `from selfalign import data` names a part; `from selfalign import Policy` names the public face.
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "selfalign" else [module]
        else:
            continue
        yield from ((node.lineno, name.split(".")[1]) for name in names if name.startswith("selfalign."))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_flow_one_way(path: Path):
    part = part_of(path)
    assert part in LEVEL, f"{part} has no place in LEVELS; give it one"
    for line, other in imported_parts(path):
        allowed = other == part or LEVEL.get(other, len(LEVELS)) < LEVEL[part]
        assert allowed, f"{path.relative_to(ROOT)}:{line} imports selfalign.{other}, which comes later than {part}"


def test_relative_imports_are_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "play.py"
    path.write_text(
        "from ..align import store\nfrom . import cache\nimport selfalign.types\nfrom selfalign import sim\n"
    )
    assert [part for _, part in imported_parts(path)] == ["align", "data", "types", "sim"]


OPTIONAL = ["mujoco", "robosuite", "gymnasium", "tensorboard", "sentencepiece"]
OPTIONAL += ["websockets", "msgpack", "prometheus_client", "mink", "google_crc32c", "timm", "peft", "wandb", "ray"]
OPTIONAL += ["matplotlib"]


@pytest.mark.parametrize("package", OPTIONAL)
def test_importing_selfalign_needs_no_optional_package(package: str):
    code = f"import sys, selfalign; sys.exit('{package}' in sys.modules and '{package} was imported')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
