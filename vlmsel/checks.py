"""Checks of settings where they are used: what was given, what was expected, in one line."""

from __future__ import annotations

import math
from typing import Any


def given(**values: Any) -> dict[str, Any]:
    """Return the optional hyper-parameters that are not None.

    >>> given(start=None, steps=3)
    {'steps': 3}
    """
    return {name: value for name, value in values.items() if value is not None}


def quoted(content: object, most: int = 100) -> str:
    """Quote what others wrote in a message, its beginning where it is long.

    >>> quoted("red"), quoted("a" * 1000, 9)
    ("'red'", "'aaaaaaaa… (1002 characters)")
    """
    text = repr(content)
    return text if len(text) <= most else f"{text[:most]}… ({len(text)} characters)"


def check_positive(**values: float) -> None:
    """Refuse hyper-parameters that are not positive finite numbers."""
    for name, value in values.items():
        if isinstance(value, bool) or not (isinstance(value, int | float) and 0 < value < math.inf):
            raise ValueError(f"{name} must be a number above 0, got {value!r}")


def check_count(**values: int) -> None:
    """Refuse hyper-parameters that are not positive whole numbers."""
    for name, value in values.items():
        if isinstance(value, bool) or not (isinstance(value, int) and value > 0):
            raise ValueError(f"{name} must be a whole number above 0, got {value!r}")


def check_flag(**values: bool) -> None:
    """Refuse hyper-parameters that are neither True nor False, such as the text 'no', which would count as true."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be True or False, got {value!r}")


def check_choice(allowed: tuple[object, ...], **values: object) -> None:
    """Refuse hyper-parameters that are not among the allowed ones."""
    for name, value in values.items():
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {value!r}")


def check_at_least_one(**values: int | None) -> None:
    """Refuse numbers below 1; None is none."""
    for name, value in values.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
