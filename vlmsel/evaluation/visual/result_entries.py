"""The entries of files of answers: which shapes there are, and a file read and checked as a whole.

A file is a JSON list or JSON lines; its entries are objects with the keys of one shape, and may have more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from vlmsel.runs import read_json

Shape = tuple[str, ...]  # an entry's keys: what names the question, ..., the answer
SERVER: Shape = ("question_id", "answer")
GQA: Shape = ("questionId", "prediction")
POPE: Shape = ("question", "answer")
LINES: Shape = ("question_id", "prompt", "text")
SHAPES = {"vqav2": (SERVER, LINES), "gqa": (GQA, LINES), "pope": (POPE, LINES), "textvqa": (SERVER, LINES)}
_CONTAINERS = "a file of answers is a JSON list, or has one JSON object a line"


def shapes_of(task: str) -> tuple[Shape, ...]:
    """Return the shapes that a task's answers come in, the official one first.

    Raises:
        ValueError: the task has no official format.
    """
    if task not in SHAPES:
        raise ValueError(f"{task!r} has no official file of results; there are {', '.join(SHAPES)}")
    return SHAPES[task]


@dataclass(frozen=True)
class AnswerFile:
    """A file's entries, all of one shape and with an answer in words; `unit` is what an entry is called."""

    path: Path
    unit: str
    shape: Shape
    entries: Sequence[Mapping[str, Any]]

    @property
    def texts(self) -> list[str]:
        """The answers."""
        return [entry[self.shape[-1]] for entry in self.entries]

    @property
    def names(self) -> list[str]:
        """What names each entry's question."""
        return [str(entry[self.shape[0]]) for entry in self.entries]


def read_file(path: Path, shapes: Sequence[Shape]) -> AnswerFile:
    """Read a file whose entries all have the same one of the shapes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON, or an entry has another shape or an answer that is no text; says how many.
    """
    unit, entries = _entries(path)
    fitting = {shape: [_fits(entry, shape) for entry in entries] for shape in shapes}
    shape = max(shapes, key=lambda one: sum(fitting[one]))
    if not all(fitting[shape]):
        wanted = [shape] if any(fitting[shape]) else shapes
        refuse(fitting[shape], path, unit, f"are not {' or '.join(map(_shown, wanted))}", "take these keys")
    texts = [isinstance(entry[shape[-1]], str) for entry in entries]
    if not all(texts):
        refuse(texts, path, unit, f"have an answer ({shape[-1]!r}) that is no text", "put it in quotes or ask again")
    return AnswerFile(path, unit, shape, entries)


def refuse(good: Sequence[bool], path: Path, unit: str, fault: str, mend: str) -> NoReturn:
    """Say how many entries of a file have a fault, and which is the first."""
    units = {"line": "lines", "entry": "entries"}[unit]
    first = good.index(False) + 1
    raise ValueError(f"{good.count(False)} of {len(good)} {units} in {path} {fault}, the first: {unit} {first}; {mend}")


def _shown(shape: Shape) -> str:
    return "{" + ", ".join(f'"{key}"' for key in shape) + "}"


def _fits(entry: Any, shape: Shape) -> bool:
    """Tell whether an entry has the keys, names a question by text or number, and has text in between."""
    if not isinstance(entry, dict) or not set(shape) <= set(entry):
        return False
    name = entry[shape[0]]
    named = isinstance(name, int | str) and not isinstance(name, bool)
    return named and all(isinstance(entry[key], str) for key in shape[1:-1])


def _entries(path: Path) -> tuple[str, list[Any]]:
    """Return what an entry is called, and the entries of a JSON list or of JSON lines."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        text = path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as problem:
        raise ValueError(f"{path}: not a text file ({problem}); {_CONTAINERS}") from None
    if text.startswith("["):
        return "entry", read_json(path)
    lines = [_parsed(line) for line in text.split("\n")] if text else []
    if None in lines:
        refuse([line is not None for line in lines], path, "line", "are not JSON", _CONTAINERS)
    return "line", lines


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None
