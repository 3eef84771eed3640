"""What every command takes, from `assets/options.json`, so that help and mistakes in options need no torch (10 s).

`tools/write_options.py` writes the file from the commands themselves, and a test says when it must do so again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

FILE = Path(__file__).parent.parent / "assets" / "options.json"
NUMBERS = {"int": int, "float": float}


@cache
def listed() -> dict[str, Any]:
    """Return, by command, its `help`, its `options` with their kinds, and those that have `moved` to another."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def kind_of(hint: Any) -> Any:
    """Write a type as far as a word can be checked without the parser: the names that it may have, or the choices.

    >>> kind_of(int | None), kind_of(Literal["a", "b"]), kind_of(dict[str, str]), kind_of(str)
    (['int', 'null'], {'choices': ['a', 'b']}, 'mapping', 'any')
    """
    parts = get_args(hint) if get_origin(hint) in (Union, type(int | None)) else (hint,)
    names = [{int: "int", float: "float", bool: "bool", type(None): "null"}.get(part) for part in parts]
    if names[0] in NUMBERS and all(names):
        return names
    if get_origin(hint) is Literal:
        return {"choices": list(get_args(hint))}
    inside = any(part is dict or get_origin(part) is dict for part in parts)
    optional = len(parts) > 1 and any(map(is_dataclass, parts))  # whose fields the parser finds when they are given
    return "mapping" if inside or optional else "any"


def wrong_option(command: str, arguments: Sequence[str]) -> str:
    """Say what is wrong with the first option that cannot be right; "" where none is known to be wrong."""
    known: Mapping[str, Any] = listed()[command]["options"]
    for place, word in enumerate(arguments):
        name, equals, value = word.partition("=")
        name = name.removesuffix("+")
        if not name.startswith("--") or name == "--" or name[2:] in listed()[command]["moved"]:
            continue
        after = arguments[place + 1 : place + 2]
        if name not in known and known.get(name.partition(".")[0]) != "mapping" and not _inner(name, known):
            rest = " ".join([word, *(one for one in after if not equals and not one.startswith("-"))])
            return f"unrecognized arguments: {rest}{did_you_mean(name, known)}"
        given = value if equals else next(iter(after), None)
        if given is not None and (expected := _expected(known.get(name), given)):
            share = re.fullmatch(r"([\d.]+) ?%", given) if expected.startswith("float") else None
            return f"{name[2:]} must be {expected}, got {given}" + (
                f" ({given} is {float(share[1]) / 100:g})" if share else ""
            )
    return ""


def _inner(name: str, known: Mapping[str, Any]) -> bool:
    """Tell whether an option is of something that another option is a mapping of, such as `--tasks.gqa.questions`."""
    parts = name.split(".")
    return any(known.get(".".join(parts[:count])) == "mapping" for count in range(1, len(parts)))


def _expected(kind: Any, given: str) -> str:
    """Return what a word should have been; "" where it may be what it is."""
    if isinstance(kind, dict):
        choices = kind["choices"]
        return "" if given in map(str, choices) else f"one of {', '.join(map(str, choices))}"
    if not isinstance(kind, list) or (given.lower() in ("null", "none") and "null" in kind):
        return ""
    try:
        NUMBERS[kind[0]](given)
    except ValueError:
        return " or ".join(kind)
    return ""


def did_you_mean(word: str, known: Mapping[str, Any] | Sequence[str]) -> str:
    """Ask for the name that is nearest to a word; "" where none is near.

    >>> did_you_mean("scroe", ["score", "tune"]), did_you_mean("x", ["score"]), did_you_mean("--model", ["--help"])
    (', did you mean score?', '', '')
    """
    names = {name.lstrip("-"): name for name in known}  # dashes, which all have, make none near
    near = get_close_matches(word.lstrip("-"), list(names), 1)
    return f", did you mean {names[near[0]]}?" if near else ""
