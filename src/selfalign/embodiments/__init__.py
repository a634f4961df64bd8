"""Robots, one file each: what a robot calls things, and how its numbers become a model's.

    robot = embodiments.get("droid")
    policy = sa.load("checkpoints/pi05_droid", robot=robot)

A file says `ROBOTS` (a tuple of `Embodiment`) and has `make_example()`. To add a robot, put a file here, or anywhere
and name its path: `get("my_robot.py")`.
"""

import importlib
import importlib.util
import pkgutil
import re
import sys
from pathlib import Path
from types import ModuleType

from selfalign.embodiments.base import Embodiment, Part
from selfalign.embodiments.steps import DeltaActions, DeltaPose, Numbers, Step, make_bool_mask

__all__ = [
    "Embodiment",
    "Part",
    "Step",
    "Numbers",
    "DeltaActions",
    "DeltaPose",
    "make_bool_mask",
    "get",
    "names",
    "modules",
    "load_file",
]


def get(name: str | Path) -> Embodiment:
    """A robot by its name or by the path of a file with `ROBOTS`.

    Args:
        name: one of `names()`, or `my_robot.py`, or `my_robot.py:second` where the file has several.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown name, or a file without robots or with several of which none was chosen.
    """
    if file := re.fullmatch(r"(.+\.py)(?::([^/]*))?", str(name)):
        return _from_file(Path(file[1]), file[2] or "")
    known = {robot.name: robot for module in modules() for robot in module.ROBOTS}
    if name not in known:
        raise ValueError(
            f"no robot {str(name)!r}; there are {', '.join(known)}. Of your own robot, give the path of its file "
            "(docs/new_robot.md)"
        )
    return known[str(name)]


def names() -> tuple[str, ...]:
    """Every robot that `get` knows."""
    return tuple(robot.name for module in modules() for robot in module.ROBOTS)


def modules() -> list[ModuleType]:
    """The robots' files."""
    found = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    return [module for module in found if hasattr(module, "ROBOTS")]


def load_file(path: Path) -> ModuleType:
    """A Python file as a module, which may import what lies beside it.

    Raises:
        FileNotFoundError: no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no robot file at {path}")
    name = f"selfalign_robot_{path.stem}"  # not the stem alone, which may be the name of a package
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    if (folder := str(path.parent.resolve())) not in sys.path:
        sys.path.append(folder)
    spec.loader.exec_module(module)
    return module


def _from_file(path: Path, chosen: str) -> Embodiment:
    module = load_file(path)
    known = {robot.name: robot for robot in getattr(module, "ROBOTS", ())}
    if chosen not in known and (chosen or len(known) != 1):
        told = f"choose one as {path}:<name> of {', '.join(known)}" if known else "it defines no ROBOTS"
        raise ValueError(f"{path}: {told}; see docs/new_robot.md")
    return known[chosen] if chosen else next(iter(known.values()))
