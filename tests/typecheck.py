"""The checker that conftest.py hands to jaxtyping: shapes and dtypes of arrays, by beartype."""

from collections.abc import Callable
from typing import get_args

from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as for a static checker


def _has_shape(hint: object) -> bool:
    return (isinstance(hint, type) and issubclass(hint, AbstractArray)) or any(map(_has_shape, get_args(hint)))


def typechecked(function: Callable) -> Callable:
    """`function` with its arrays checked; hints without a shape are the static checker's work and are left out."""
    hints = getattr(function, "__annotations__", {})
    function.__annotations__ = {name: hint for name, hint in hints.items() if _has_shape(hint)}
    return _check(function)
