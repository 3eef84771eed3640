"""Scorers by name: `HyperINF`, `LiSSA.official`, `HyperINF(damping=10)`, or a plug-in: `my.module:MyScorer(alpha=2)`.

Settings are Python literals and nothing is evaluated; naming a plug-in imports its module, which runs that module's
code.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from importlib import import_module
from typing import Any

from vlmsel.scorers import BUILT_IN
from vlmsel.scorers.base import Scorer


def load_scorer(spec: str) -> Scorer:
    """Make the scorer that `spec` names.

    Raises:
        ValueError: it cannot be read, imported or made; one line says why.
    """
    name, settings = _parts(spec)
    make = _find(name, spec)
    try:
        scorer = make(**settings)
    except (TypeError, ValueError) as problem:
        raise ValueError(f"scorer {spec!r}: {_line(problem)}") from None
    except Exception as problem:  # a plug-in's own code may raise anything
        raise ValueError(f"scorer {spec!r} cannot be made: {type(problem).__name__}: {_line(problem)}") from problem
    if not isinstance(scorer, Scorer):
        raise ValueError(f"scorer {spec!r} is a {type(scorer).__name__}, not a vlmsel.scorers.Scorer")
    title = getattr(scorer, "name", None)
    if not isinstance(title, str) or not title or "/" in title:
        raise ValueError(f"scorer {spec!r}: its name must be a text without '/', got {title!r}")
    return scorer


def _line(problem: Exception) -> str:
    """Return what an exception says, on one line."""
    return " ".join(str(problem).split())


def _parts(spec: str) -> tuple[str, dict[str, Any]]:
    """Split `name(key=literal, ...)`."""
    name, bracket, rest = spec.strip().partition("(")
    if not bracket:
        return name, {}
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise SyntaxError  # text after the bracket, or a setting without a name
        keys = [keyword.arg for keyword in call.keywords]
        if None in keys or len(set(keys)) < len(keys):
            raise SyntaxError  # **settings, or one that is given twice
        return name, {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, TypeError):
        raise ValueError(f"scorer {spec!r}: expected a name and settings such as HyperINF(damping=10)") from None


def _find(name: str, spec: str) -> Callable[..., Any]:
    head, _, preset = name.partition(".")
    if head in BUILT_IN:
        made = getattr(BUILT_IN[head], preset, None) if preset else BUILT_IN[head]
        if made is None or (preset and not preset.startswith("official")):
            raise ValueError(f"scorer {spec!r}: {head} has no preset {preset!r}")
        return made
    module, _, attribute = name.rpartition(":" if ":" in name else ".")
    if not module:
        raise ValueError(f"no scorer is called {name!r}; there are {', '.join(BUILT_IN)}, or give module:Class")
    try:
        return getattr(import_module(module), attribute)
    except Exception as problem:  # the plug-in's own code runs here and may raise anything
        raise ValueError(f"scorer {spec!r} cannot be imported: {type(problem).__name__}: {_line(problem)}") from problem
