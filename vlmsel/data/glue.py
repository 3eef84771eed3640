"""Six tasks of GLUE (arXiv 1804.07461), read from the official TSV files: CoLA, SST-2, MRPC, QQP, QNLI, RTE.

Columns are found by the names in the first line; CoLA's train and dev files have none. Sentences are kept as they
stand, as the Hugging Face datasets keep them: those of SST-2 end with a blank.

A row with too many or too few columns is an error; QQP's files hold a few of them, which are left out, as the Hugging
Face reader leaves them out. Labels of test files are not public: such a file has no label column (or -1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlmsel.checks import quoted
from vlmsel.data.rows import Unread, check_whole, parse_all, read_lines, readable, table_rows

COLA_COLUMNS = ("source", "label", "mark", "sentence")  # of the files that have no header
NO_LABEL = "-1"


@dataclass(frozen=True)
class GlueExample:
    """One or two sentences and their class, None where it is not public; `id` is the file's, else the row from 0."""

    id: str
    texts: tuple[str, ...]
    label: int | None


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

    def example(self, number: int, row: Mapping[str, str] | Unread) -> GlueExample | Unread:
        """Make an example of a row, given with its number in the file; a malformed one stays where these are left out.

        Raises:
            ValueError: the row is malformed or its label unknown.
        """
        if isinstance(row, Unread) and self.skips:
            return row
        cells, written = readable(row), self.classes if self.worded else ("0", "1")
        label = cells.get(self.label, NO_LABEL)
        if label != NO_LABEL and label not in written:
            raise ValueError(f"the label must be {' or '.join(written)}, got {quoted(label, 40)}; mend it")
        place = None if label == NO_LABEL else written.index(label)
        texts = tuple(cells[name] for name in self.texts)
        return GlueExample(cells.get(self.identity, str(number)), texts, place)


_ENTAILMENT = ("entailment", "not_entailment")
GLUE_TASKS = {
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


def read_glue(task: str, path: str | Path) -> list[tuple[str, GlueExample | Unread]]:
    """Read a task's official TSV file; a row that is left out is an `Unread` in its place.

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
    headless = task == "cola" and "sentence" not in read_lines(path)[0].split("\t")
    columns, given = table_rows(path, COLA_COLUMNS if headless else None)
    _check_columns(path, task, columns)
    rows = list(given)
    parsed = parse_all(path, rows, shape.example, "row")
    if not (whole := [row for row in parsed if isinstance(row, GlueExample)]):
        raise ValueError(f"{path}: no row with {len(columns)} columns in it; take {task}'s official file")
    check_whole(path, [one.id for one in whole], [one.label for one in whole], "row")
    return [(place, row) for (place, _), row in zip(rows, parsed, strict=True)]


def _check_columns(path: Path, task: str, columns: Sequence[str]) -> None:
    """Check that a header has what is read; it may lack the label only where it is a test file's."""
    shape, held = GLUE_TASKS[task], f"its first line has {', '.join(map(repr, columns))[:200]}"
    known = {shape.label, shape.identity, *shape.texts, *shape.others}
    needed = shape.texts if known.issuperset(columns) else (*shape.texts, shape.label)
    if missing := [name for name in needed if name not in columns]:
        raise ValueError(f"{path}: no column {missing[0]!r}, {held}; is this the official file of {task}?")
    if len(set(columns)) < len(columns):
        raise ValueError(f"{path}: a column occurs twice, {held}; take {task}'s official file")
