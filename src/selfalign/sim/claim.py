"""Whose a folder of recordings is."""

from pathlib import Path


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
    path = out / "plan.json"
    if not path.exists():
        if any(out.glob(parts)):
            raise ValueError(f"{out} has {parts} but no {path.name}; choose another folder")
        path.write_text(plan, encoding="utf-8")
    elif path.read_text(encoding="utf-8") != plan:
        raise ValueError(f"{out} holds the recording of another plan (see {path}); choose another folder or remove it")
