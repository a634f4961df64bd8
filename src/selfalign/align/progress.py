"""A progress bar with phases, or none."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

Report = Callable[[str], None]
"""Says that one more is done, and what to show beside the bar."""

StartPhase = Callable[[str, int], Report]
"""Starts a bar from its description and total."""


@contextmanager
def phases(show: bool, title: str) -> Iterator[StartPhase]:
    """Yields a function that starts a phase; with `show=False` nothing is printed."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(*columns, TextColumn("{task.fields[text]}"), disable=not show)

    def start(description: str, total: int) -> Report:
        task = bar.add_task(escape(f"{title}: {description}"), total=total, text="")
        return lambda text="": bar.update(task, advance=1, text=text)

    with bar:
        yield start
