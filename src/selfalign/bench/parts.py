"""Finished parts of a benchmark, beside its output: what an interrupted run goes on from."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from rich.console import Console

from selfalign.bench.resident import close_arenas
from selfalign.provenance import digest
from selfalign.sim.prepare import prepare
from selfalign.sim.robots import RobotSpec
from selfalign.workers import progress_bar, run_jobs


class Part(Protocol):
    """One piece of work, as a worker gets it."""

    @property
    def key(self) -> str:
        """Its name, which no other part has."""
        ...

    @property
    def robots(self) -> Sequence[RobotSpec]:
        """Whose scenes it needs."""
        ...


Part_ = TypeVar("Part_", bound=Part)


@contextmanager
def parts_of(out: Path, identity: Mapping[str, Any], console: Console) -> Iterator[Path]:
    """The folder of what is finished. It goes when the block has ended well, which has to write `out`.

    Args:
        out: the output.
        identity: everything that the parts depend on: runs that differ in it share none.
    """
    folder = out.with_name(f"{out.name}.parts-{digest(identity, 10)}")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    except KeyboardInterrupt:
        console.print(f"Interrupted. What is finished is in {folder}; the same command goes on from there.")
        raise
    finally:
        close_arenas()
    shutil.rmtree(folder)


def run_parts(
    title: str,
    work: Callable[[Part_], str],
    parts: Sequence[Part_],
    product: Callable[[Part_], Path],
    *,
    workers: int,
    show: bool,
) -> int:
    """Does the work whose product is not there yet, and returns how many parts an earlier run had done.

    Raises:
        RuntimeError: a worker died. What the work raises is raised here.
    """
    for robot in dict.fromkeys(robot for part in parts for robot in part.robots):
        prepare(robot)  # once here, rather than at the same time in every worker
    # One robot after another: a worker then seldom changes robots.
    todo = sorted((p for p in parts if not product(p).is_file()), key=lambda p: (p.robots[0].name, p.key))
    with progress_bar(title, len(parts), show) as bar:
        bar.at(len(parts) - len(todo))
        run_jobs(work, todo, workers, on_done=lambda part, _: bar.finished(part.key))
    return len(parts) - len(todo)
