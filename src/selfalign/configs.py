"""Frozen configs: what they say of values that they refuse, and copies with other values."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")


def below(config: Any, **least: int) -> list[str]:
    """`name=value (at least ...)` of every field that is smaller than its least value; None is not."""
    values = {name: getattr(config, name) for name in least if getattr(config, name) is not None}
    return [f"{name}={value} (at least {least[name]})" for name, value in values.items() if value < least[name]]


def refuse(what: str, wrong: Sequence[str]) -> None:
    """Raises `ValueError` with what is wrong; nothing happens where nothing is."""
    if wrong:
        raise ValueError(f"{what}: refused: {', '.join(wrong)}")


def changed(config: Config, changes: Mapping[str, Any]) -> Config:
    """A config with other values. A field of a config within it has a dotted name (`training.rank`), or stands in a
    mapping of its own.

    Raises:
        ValueError: it has no such setting, or does not take the value.
    """
    values = {f.name: getattr(config, f.name) for f in fields(config)}
    for name, value in changes.items():
        outer, _, inner = name.partition(".")
        if outer not in values or (inner and not is_dataclass(values[outer])):
            raise ValueError(f"{type(config).__name__} has no setting {name!r}; it has {', '.join(values) or 'none'}")
        if inner:
            value = changed(values[outer], {inner: value})
        elif isinstance(value, Mapping) and (inside := _dataclass_of(config, outer)) is not None:
            value = changed(values[outer] or inside(), value)
        values[outer] = tuple(value) if isinstance(value, list) else value
    try:
        return replace(config, **values)
    except TypeError as error:  # a comparison with a value of another type
        told = ", ".join(f"{name}={value!r}" for name, value in changes.items())
        raise ValueError(f"{type(config).__name__} does not take {told}: {error}") from error


def _dataclass_of(config: Any, name: str) -> type[Any] | None:
    """The dataclass whose instances a field holds, be it optional; None where it holds something else."""
    hint = get_type_hints(type(config))[name]
    return next((kind for kind in (hint, *get_args(hint)) if is_dataclass(kind) and isinstance(kind, type)), None)
