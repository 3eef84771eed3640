"""Scorers by name: `HyperINF`, `LiSSA.official`, `HyperINF(damping=10)`, or a plug-in: `my.module:MyScorer(alpha=2)`.

Settings are Python literals and nothing is evaluated; naming a plug-in imports its module, which runs that module's
code.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from vlmsel.runs import file_hash
from vlmsel.scorers import BUILT_IN
from vlmsel.scorers.base import Scorer

READY = ("Loss", "Length")  # columns of every score table, by which `select` ranks


def load_scorers(names: Sequence[str]) -> list[Scorer]:
    """Load scorers; their names must tell them apart, for they name the table's columns.

    Raises:
        ValueError: none given, one does not load, or two have the same name.
    """
    if not names:
        raise ValueError("no scorer given; name at least one, such as HyperINF")
    loaded = [load_scorer(name) for name in _whole(names)]
    twice = {scorer.name for scorer in loaded if [s.name for s in loaded].count(scorer.name) > 1}
    if twice:
        raise ValueError(f"two scorers are called {min(twice)!r}; give one another name, such as HyperINF(name='mine')")
    return loaded


def _whole(names: Sequence[str]) -> list[str]:
    """Put names together that YAML has cut at commas within their settings: [A(x=1, y=2)] is two texts to it."""
    whole: list[str] = []
    for name in names:
        if whole and whole[-1].count("(") > whole[-1].count(")"):
            whole[-1] += f", {name}"
        else:
            whole.append(name)
    return whole


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


def digests(scorers: Sequence[Scorer]) -> dict[str, str]:
    """Return hashes of the files that scorers read, by scorer and what they are.

    Raises:
        ValueError: one is not there.
    """
    files = ((scorer.name, *file) for scorer in scorers for file in scorer.files.items())
    return {f"{what} of {name}": file_digest(what, path) for name, what, path in files}


def file_digest(what: str, path: str) -> str:
    """Return the hash of a file that a scorer reads.

    Raises:
        ValueError: it is not there.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file, and a scorer reads {what} from it; give the file itself")
    return file_hash(path)


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
        if name in READY:
            raise ValueError(f"{name} needs no score run: every table has it, vlmsel select --scorer {name} takes it")
        raise ValueError(f"no scorer is called {name!r}; there are {', '.join(BUILT_IN)}, or give module:Class")
    try:
        return getattr(import_module(module), attribute)
    except Exception as problem:  # the plug-in's own code runs here and may raise anything
        raise ValueError(f"scorer {spec!r} cannot be imported: {type(problem).__name__}: {_line(problem)}") from problem
