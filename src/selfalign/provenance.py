"""Where a number comes from: command, code, machine and time, written beside every result."""

import functools
import hashlib
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from selfalign.model.files import write_atomically


def provenance(seconds: float | None = None) -> dict[str, Any]:
    """Plain values for JSON; paths of this machine are reduced to names.

    Args:
        seconds: how long the work took; None: nobody knows, as where some of it was done before an interruption.
    """
    return {
        "command": command(),
        "commit": commit(),
        "machine": machine(),
        "versions": {name: _version(name) for name in ("selfalign", "torch", "mujoco", "numpy")},
        "python": platform.python_version(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": None if seconds is None else round(seconds, 1),
    }


def command() -> str:
    """The command line of this process, as one would type it, `without_places`."""
    program, arguments = Path(sys.argv[0]).name, sys.argv[1:]
    if program in ("__main__.py", "cli.py"):  # `python -m selfalign`
        program = "selfalign"
    return shlex.join([program, *without_places(arguments)])


_PLACE = re.compile(r"(?:^|(?<=[=:,]))/(?!/)[^,]*")
"""An absolute path: alone, behind `--flag=` or `lerobot:`, or one of several with commas; no address (`ws://host`)."""


def without_places(value: Any) -> Any:
    """JSON values (and paths, as text) in which absolute paths are reduced to names: where a file lies on this machine
    is nobody's business. Relative paths stay."""
    if isinstance(value, Mapping):
        return {name: without_places(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_places(inner) for inner in value]
    if isinstance(value, str | Path):
        return _PLACE.sub(lambda found: Path(found[0]).name or "/", str(value))
    return value


@functools.cache
def commit() -> str | None:
    """The commit of the source tree, with `+changes` where files of the package differ from it or are not in it; None
    outside of git.

    Read once in a process, and early (`Stopwatch` does): the code that runs is the one that was imported, whatever is
    committed while it runs.
    """
    root = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.strip()

    try:
        # An installed package inside somebody else's repository is not that repository's code.
        if not git("ls-files", Path(__file__).name):
            return None
        changed = git("status", "--porcelain", "--untracked-files=all", "--", str(root))
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def machine() -> dict[str, Any]:
    """Processor, usable cores and accelerator."""
    import torch

    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": platform.system(),
        "accelerator": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


class Stopwatch:
    """Seconds since it was made, or since the last `lap`. A run that makes one as it begins knows its `commit`, too."""

    def __init__(self) -> None:
        commit()
        self._began = self._lap = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return time.perf_counter() - self._began

    def lap(self) -> float:
        """Since the last call."""
        before, self._lap = self._lap, time.perf_counter()
        return self._lap - before


def write_json(path: str | Path, data: Any) -> Path:
    """Writes JSON that any reader takes (no NaN), atomically: the old file stays until the new is whole.

    Raises:
        ValueError: a number that is not finite.
        OSError: no room, or no permission.
    """
    path = Path(path)
    text = json.dumps(data, indent=1, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda partial: Path(partial).write_text(text, encoding="utf-8"))
    return path


def digest(identity: Any, letters: int = 16) -> str:
    """A name for what a measurement depends on: the same values, in whatever order of keys, give the same."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:letters]


def read_kept(path: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a file of results holds, if it is whole and of exactly this measurement; None is what it does not tell."""
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # no JSON, or no text at all
        return None
    return found if isinstance(found, dict) and not _differing(found, identity) else None


def read_own(path: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the output of a measurement holds, where an earlier run has written it; None where there is no file.

    Raises:
        ValueError: it is no such result, or of another measurement: writing would lose it.
    """
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is no result, and would be lost; write to another file, or remove it")
    if differing := _differing(found, identity):
        raise ValueError(
            f"{path} holds another result, which would be lost: it differs in {', '.join(differing)}; "
            "write to another file, or remove it"
        )
    return found


def _differing(found: Mapping[str, Any], identity: Mapping[str, Any]) -> list[str]:
    """Names of what a file does not have, or otherwise; "settings.seed" where both have `settings`."""
    names = []
    for name, value in identity.items():
        other = found.get(name)
        if isinstance(value, dict) and isinstance(other, dict) and other.keys() == value.keys():
            names += [f"{name}.{key}" for key in value if other[key] != value[key]]
        elif other != value:
            names.append(name)
    return names
