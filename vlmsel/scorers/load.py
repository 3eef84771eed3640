"""Scorers by name: `HyperINF`, `LiSSA.official`, `HyperINF(damping=10)`, or a plug-in such as `my.module:MyScorer(alpha=2)`.

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
        raise ValueError(f"scorer {spec!r}: {problem}") from None
    if not isinstance(scorer, Scorer):
        raise ValueError(f"scorer {spec!r} is a {type(scorer).__name__}, not a vlmsel.scorers.Scorer")
    if not isinstance(scorer.name, str) or not scorer.name or "/" in scorer.name:
        raise ValueError(f"scorer {spec!r}: its name must be a text without '/', got {scorer.name!r}")
    return scorer


def _parts(spec: str) -> tuple[str, dict[str, Any]]:
    """Split `name(key=literal, ...)`."""
    name, bracket, rest = spec.strip().partition("(")
    if not bracket:
        return name, {}
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(k.arg is None for k in call.keywords):
            raise SyntaxError
        return name, {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError):
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
        raise ValueError(f"scorer {spec!r} cannot be imported: {type(problem).__name__}: {problem}") from problem
