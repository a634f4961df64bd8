"""What a checkpoint of full size costs to look at and to convert: seconds of the processor, and the peak of memory.

    python benchmarks/full_size.py --folder DISK --out benchmarks/results/full_size.json

The checkpoint is openpi's pi0 or pi0.5 in bfloat16 (7 GB), a file that is one hole and takes no room. What it is
converted to is written in full beside it and then removed: up to 9 GB.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from selfalign.provenance import Stopwatch, provenance, write_json

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from checkpoints import write_hollow


@dataclass(frozen=True)
class Config:
    """What to measure."""

    kind: Literal["pi0", "pi05"] = "pi0"
    convert: tuple[str, ...] = ("lerobot", "selfalign", "pi0_aligned")
    """Targets of `selfalign convert`; none: `selfalign inspect` alone, which writes nothing."""
    folder: Path | None = None
    """Where there is room; None: the system's folder for temporary files."""
    out: Path | None = None
    """JSON file of the results."""


def run(*arguments: str) -> dict[str, float]:
    """Seconds and peak of resident memory of a `selfalign` command in a process of its own."""
    watch = Stopwatch()
    process = subprocess.Popen([sys.executable, "-m", "selfalign.cli", *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"selfalign {' '.join(arguments)} failed")
    return {
        "seconds": watch.seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_gb": usage.ru_maxrss * 1024 / 1e9,
    }


def measure(config: Config, folder: Path) -> dict[str, Any]:
    """Rows by command."""
    source, results = write_hollow(folder / config.kind, config.kind), {}
    results[f"inspect --preset {config.kind}_aligned"] = run("inspect", "--preset", f"{config.kind}_aligned")
    results["inspect --checkpoint"] = run("inspect", "--checkpoint", str(source))
    for target in config.convert:
        written = folder / target
        results[f"convert --to {target}"] = run("convert", str(source), str(written), "--to", target)
        shutil.rmtree(written)
    return results


def main(config: Config) -> None:
    watch = Stopwatch()
    if config.folder is not None:
        config.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=config.folder) as folder:
        results = measure(config, Path(folder))
    for name, row in results.items():
        print(f"{name}: " + ", ".join(f"{key} {value:.2f}" for key, value in row.items()))
    if config.out is not None:
        settings = {"kind": config.kind, "convert": config.convert}
        write_json(config.out, {"settings": settings, "results": results, **provenance(watch.seconds)})


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
