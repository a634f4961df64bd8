"""Whose a folder of recordings is."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PLAN = "plan.json"


def claim(out: Path, plan: str, parts: str) -> None:
    """Marks a folder as that of a plan, so that no other recording is mixed into it.

    Args:
        out: made where needed.
        plan: the plan as text.
        parts: glob of what a recording leaves in it.

    Raises:
        ValueError: the folder holds the recording of another plan, or of none that is known.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / PLAN
    if not path.exists():
        if any(out.glob(parts)):
            raise ValueError(f"{out} has {parts} but no {path.name}; choose another folder")
        path.write_text(plan, encoding="utf-8")
    elif path.read_text(encoding="utf-8") != plan:
        raise ValueError(f"{out} holds the recording of another plan (see {path}); choose another folder or remove it")


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Keeps other processes from recording into a claimed folder, until the context or this process ends, however.

    Raises:
        ValueError: another process records into it.
    """
    with (out / PLAN).open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            told = "wait until it has ended, or choose another folder"
            raise ValueError(f"another process records into {out}: {told}") from None
        yield
