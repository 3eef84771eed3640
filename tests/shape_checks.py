"""The check that `--jaxtyping-packages` in pyproject.toml puts around the functions of the rooms with shapes.

It looks at shapes alone: types of other values are mypy's, and wrong settings are refused by the package itself. Every
test checks the first calls of each function; the others are like them, and checking costs more than most of what is
checked.
"""

from collections.abc import Callable
from functools import partial, wraps
from types import FunctionType
from typing import Any, get_args

import jaxtyping
from beartype import beartype
from jaxtyping import AbstractArray

CALLS = 5  # of each function that a test checks
_always = jaxtyping.jaxtyped
_test = 0  # counted


def check(function: Callable) -> Callable:
    """Let beartype check those arguments and results of a function whose annotations have shapes."""
    annotations = function.__annotations__
    function.__annotations__ = {name: kind for name, kind in annotations.items() if has_shape(kind)}
    return beartype(function)


def has_shape(annotation: Any) -> bool:
    """Tell whether a jaxtyping array is the annotation or a part of it."""
    if parts := get_args(annotation):
        return any(map(has_shape, parts))
    return isinstance(annotation, type) and issubclass(annotation, AbstractArray)


def begin_test() -> None:
    """Check the first calls of every function anew."""
    global _test
    _test += 1


def jaxtyped(function: Any = None, **how: Any) -> Any:
    """Decorate as `jaxtyping.jaxtyped` does, but check the first calls of a function in each test only."""
    if function is None:
        return partial(jaxtyped, **how)
    checked = _always(function, **how)
    if not isinstance(function, FunctionType):
        return checked
    test = calls = 0

    @wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        nonlocal test, calls
        test, calls = _test, calls + 1 if test == _test else 1
        return (checked if calls <= CALLS else function)(*args, **kwargs)

    return called


def install() -> None:
    """Have the import hook of `--jaxtyping-packages` decorate so."""
    jaxtyping.jaxtyped = jaxtyped
