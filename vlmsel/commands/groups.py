"""Groups of options: records marked `flat`, each field of which is an option of the command itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from inspect import Parameter, signature
from typing import Any, get_type_hints


def groups_of(command: Callable[..., Any]) -> dict[str, Any]:
    """Return the parameters of a command that are groups of options, with their records."""
    hints = get_type_hints(command)
    return {name: kind for name, kind in hints.items() if is_dataclass(kind) and getattr(kind, "flat", False) is True}


def defaults(command: Callable[..., Any]) -> dict[str, Any]:
    """Return what a command takes for its options, those of its groups among them, where none are given."""
    flat = groups_of(command)
    found: dict[str, Any] = {}
    for name, parameter in signature(command).parameters.items():
        if name in flat:
            found |= vars(flat[name]() if parameter.default is Parameter.empty else parameter.default)
        elif parameter.default is not Parameter.empty and name not in ("out", "config"):
            found[name] = parameter.default
    return found


def grouped(command: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a command is called with: options that belong to a group are put into its record."""
    found = dict(options)
    for name, kind in groups_of(command).items():
        found[name] = kind(**{field.name: found.pop(field.name) for field in fields(kind) if field.name in found})
    return found
