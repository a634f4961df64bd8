"""What frozen configs say of values that are out of range: all of them at once, each with the least that will do."""

from collections.abc import Sequence
from typing import Any


def below(config: Any, **least: int) -> list[str]:
    """`name=value (at least ...)` of every field that is smaller than its least value; None is not."""
    values = {name: getattr(config, name) for name in least if getattr(config, name) is not None}
    return [f"{name}={value} (at least {least[name]})" for name, value in values.items() if value < least[name]]


def refuse(what: str, wrong: Sequence[str]) -> None:
    """Raises `ValueError` with what is wrong; nothing happens where nothing is."""
    if wrong:
        raise ValueError(f"{what}: out of range: {', '.join(wrong)}")
