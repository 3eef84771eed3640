"""MMBench's files: TSV of index, question, hint, A, B, ..., answer, category and the picture itself in base64.

A file for circular evaluation holds every question as often as it has options, under index + k · 10⁶, with its options
rotated; the picture of a copy is the index of the question it is of. Cells of missing options and hints are empty (or
"nan", "none"); the test split has no answers. The pictures stay in memory, encoded as they come.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyarrow import ArrowInvalid, csv, string

from vlmsel.checks import quoted
from vlmsel.data.formats.pictures import InPool
from vlmsel.data.rows import parse_all
from vlmsel.evaluation.task import TaskFiles
from vlmsel.evaluation.visual.choices import LETTERS, with_options
from vlmsel.evaluation.visual.questions import Question

NEEDED = ("index", "question", "A", "B", "answer", "image")
NAMED = 64  # characters up to which a picture's cell is the index of another row


class Inline(InPool):
    """A picture whose bytes stand in a cell, in base64."""

    encoded: str

    def content(self) -> bytes:
        """Return its bytes.

        Raises:
            ValueError: it is no base64.
        """
        try:
            return base64.b64decode(self.encoded, validate=True)
        except binascii.Error as problem:
            raise ValueError(f"its picture is no base64 ({problem}); take the official file again") from None


def read_mmbench(files: TaskFiles) -> list[Question]:
    """Read a file; rotated copies are questions like any other."""
    (path,) = files.paths
    rows = [(f"question {row['index']}", row) for row in _table(path)]
    cells = {row["index"]: row["image"] for _, row in rows}
    return parse_all(path, rows, lambda _, row: _question(path, row, cells), "question")


def _table(path: Path) -> list[dict[str, str]]:
    """Read all cells as text; a quoted one may hold line ends, and be of any length."""
    size = max(1 << 20, path.stat().st_size + 1)
    try:
        names = csv.open_csv(path, csv.ReadOptions(block_size=size), _PARSE).schema.names
        if lacking := [name for name in NEEDED if name not in names]:
            public = "the test split's answers are not public, take the dev file" if lacking == ["answer"] else ""
            has = public or f"MMBench's TSV has {', '.join(NEEDED)}"
            raise ValueError(f"{path}: no column {lacking[0]!r}; {has}")
        cells = csv.ConvertOptions(column_types=dict.fromkeys(names, string()), strings_can_be_null=False)
        return csv.read_csv(path, csv.ReadOptions(block_size=size), _PARSE, cells).to_pylist()
    except ArrowInvalid as problem:
        raise ValueError(f"{path}: not MMBench's TSV ({problem})") from None


_PARSE = csv.ParseOptions(delimiter="\t", newlines_in_values=True)


def _question(path: Path, row: Mapping[str, str], cells: Mapping[str, str]) -> Question:
    if not row["index"].isdecimal():
        raise ValueError(f"the index must be a whole number, got {quoted(row['index'], 40)}")
    options: list[str] = []
    for letter in LETTERS:
        if (text := _cell(row, letter)) is None:
            break
        options.append(text)
    answer = (_cell(row, "answer") or "").strip()
    if answer not in tuple(LETTERS[: len(options)]):
        public = "the test split's are not public, take the dev file" if not answer else "mend it"
        raise ValueError(f"the answer must be the letter of one of {len(options)} options, got {answer!r}; {public}")
    hint = _cell(row, "hint")
    asked = row["question"] if hint is None else f"{hint}\n{row['question']}"
    choices, group = tuple(options), _cell(row, "category") or ""
    picture = _picture(path, row["index"], cells)
    return Question(row["index"], picture, with_options(asked, choices), (answer,), group, choices=choices)


def _picture(path: Path, index: str, cells: Mapping[str, str]) -> Inline:
    name = index
    if len(cells[name]) <= NAMED and (name := cells[name]) not in cells:
        raise ValueError(f"no picture, and its cell {name!r} is the index of no question; take the official file")
    picture = Inline(f"{path}#{name}")
    picture.encoded = cells[name]
    picture.content()
    return picture


def _cell(row: Mapping[str, Any], name: str) -> str | None:
    """Return what stands in a cell, None where nothing does."""
    text = row.get(name, "")
    return None if text.strip().lower() in ("", "nan", "none") else text
