"""Six tasks of GLUE (arXiv 1804.07461), read from the official TSV files: CoLA, SST-2, MRPC, QQP, QNLI, RTE.

A quotation mark is a character like any other, as in csv.QUOTE_NONE: with the usual quoting rules a sentence that opens
one swallows the rows after it. Columns are found by the names in the first line; CoLA's train and dev files have none.
Sentences are kept as they stand, as the Hugging Face datasets keep them: those of SST-2 end with a blank.

A row with too many or too few columns is an error; QQP's files hold a few of them, which are left out and counted, as
the Hugging Face reader leaves them out. Labels of test files are not public: such a file has no label column (or -1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from vlmsel.data.benchmark_files import check_whole, parse_all, read_lines

COLA_COLUMNS = ("source", "label", "mark", "sentence")  # of the files that have no header
NO_LABEL = "-1"


@dataclass(frozen=True)
class GlueFormat:
    """The columns of a task's files and what its labels 0 and 1 mean; `others` are columns that are not read.

    `worded` says that the files hold the classes' names; other files hold 0 and 1. `skips` says that malformed rows are
    left out.
    """

    texts: tuple[str, ...]
    label: str
    classes: tuple[str, str]
    identity: str = "index"
    others: tuple[str, ...] = ()
    worded: bool = False
    skips: bool = False


@dataclass(frozen=True)
class GlueExample:
    """One or two sentences and their class, None where it is not public; `id` is the file's, else the row from 0."""

    id: str
    texts: tuple[str, ...]
    label: int | None


@dataclass(frozen=True)
class GlueFile:
    """The examples of a file in its order, and line number (from 1) and reason of each row that was left out."""

    examples: list[GlueExample]
    skipped: list[tuple[int, str]]


_ENTAILMENT = ("entailment", "not_entailment")
GLUE_TASKS = MappingProxyType(
    {
        "cola": GlueFormat(("sentence",), "label", ("unacceptable", "acceptable"), others=("source", "mark")),
        "sst2": GlueFormat(("sentence",), "label", ("negative", "positive")),
        "mrpc": GlueFormat(
            ("#1 String", "#2 String"), "Quality", ("not_equivalent", "equivalent"), others=("#1 ID", "#2 ID")
        ),
        "qqp": GlueFormat(
            ("question1", "question2"), "is_duplicate", ("not_duplicate", "duplicate"), identity="id", skips=True
        ),
        "qnli": GlueFormat(("question", "sentence"), "label", _ENTAILMENT, worded=True),
        "rte": GlueFormat(("sentence1", "sentence2"), "label", _ENTAILMENT, worded=True),
    }
)


def read_glue(task: str, path: str | Path) -> GlueFile:
    """Read a task's official TSV file.

    Args:
        task: cola, sst2, mrpc, qqp, qnli or rte.
        path: its train.tsv, dev.tsv or test.tsv.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column is missing, a row malformed (but for QQP) or a label unknown, an id occurs again, or only a
            part of the rows has labels; names file, line and count.
    """
    if task not in GLUE_TASKS:
        raise ValueError(f"there is no GLUE task {task!r}; choose one of {', '.join(GLUE_TASKS)}")
    path, shape = Path(path), GLUE_TASKS[task]
    columns, rows, first = _table(task, read_lines(path))
    _check_columns(path, task, columns)
    skipped = _malformed(rows, len(columns), first) if shape.skips else []
    left_out = {line for line, _ in skipped}
    numbered = [(f"line {line}", (line - first, row)) for line, row in enumerate(rows, first) if line not in left_out]
    if not numbered:
        raise ValueError(f"{path}: no row with {len(columns)} columns in it; take {task}'s official file")
    examples = parse_all(path, numbered, _example_reader(shape, columns), "row")
    check_whole(path, [one.id for one in examples], [one.label for one in examples], "row")
    return GlueFile(examples, skipped)


def _table(task: str, lines: Sequence[str]) -> tuple[tuple[str, ...], list[list[str]], int]:
    """Split a file into its columns' names, its rows and the line number of the first row."""
    rows = [line.split("\t") for line in lines]
    if task == "cola" and "sentence" not in rows[0]:
        return COLA_COLUMNS, rows, 1
    return tuple(rows[0]), rows[1:], 2


def _check_columns(path: Path, task: str, columns: Sequence[str]) -> None:
    """Check that a header has what is read; it may lack the label only where it is a test file's."""
    shape, held = GLUE_TASKS[task], f"its first line has {', '.join(map(repr, columns))[:200]}"
    missing = [name for name in shape.texts if name not in columns]
    if missing:
        raise ValueError(f"{path}: no column {missing[0]!r}, {held}; is this the official file of {task}?")
    known = {shape.label, shape.identity, *shape.texts, *shape.others}
    if shape.label not in columns and not known.issuperset(columns):
        raise ValueError(f"{path}: no column {shape.label!r}, {held}; is this the official file of {task}?")
    if len(set(columns)) < len(columns):
        raise ValueError(f"{path}: a column occurs twice, {held}; take {task}'s official file")


def _wrong_width(row: Sequence[str], width: int) -> str | None:
    return None if len(row) == width else f"{len(row)} columns, {width} expected"


def _malformed(rows: Sequence[Sequence[str]], width: int, first: int) -> list[tuple[int, str]]:
    """Name the lines of the rows that have not as many columns as the header."""
    reasons = ((line, _wrong_width(row, width)) for line, row in enumerate(rows, first))
    return [(line, reason) for line, reason in reasons if reason]


def _example_reader(
    shape: GlueFormat, columns: Sequence[str]
) -> Callable[[int, tuple[int, Sequence[str]]], GlueExample]:
    """Return the function that makes an example of a row, given with its number in the file."""
    written = shape.classes if shape.worded else ("0", "1")

    def read(_: int, numbered: tuple[int, Sequence[str]]) -> GlueExample:
        number, row = numbered
        if reason := _wrong_width(row, len(columns)):
            raise ValueError(f"{reason}; mend the row")
        cells = dict(zip(columns, row, strict=True))
        label = cells.get(shape.label, NO_LABEL)
        if label != NO_LABEL and label not in written:
            raise ValueError(f"the label must be {' or '.join(written)}, got {label[:40]!r}; mend it")
        place = None if label == NO_LABEL else written.index(label)
        texts = tuple(cells[name] for name in shape.texts)
        return GlueExample(cells.get(shape.identity, str(number)), texts, place)

    return read
