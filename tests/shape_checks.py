"""The check that `--jaxtyping-packages` in pyproject.toml puts around the functions of the rooms with shapes.

It looks at shapes alone: types of other values are mypy's, and wrong settings are refused by the package itself.
"""

from collections.abc import Callable
from typing import Any, get_args

from beartype import beartype
from jaxtyping import AbstractArray


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
