"""Labelled texts for a classifier: GLUE's official files, Hugging Face `datasets`, or CSV, TSV and JSON lines.

A sample's uid is its position in its file, counted from 0 and including samples that are left out. Labels are words:
numbers are written as such (1.0 as 1), class ids of `datasets` by their names. Nothing, a blank, NaN and -1 of class
ids are no label. A sample without a label, without any text, or from a malformed row is left out with a reason.

CSV follows the usual quoting rules. In TSV a quotation mark is a character like any other, as in GLUE's files.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmsel.data.benchmark_files import read_lines
from vlmsel.data.formats.llava import Problem
from vlmsel.data.glue import GLUE_TASKS, read_glue

FORMATS = (".csv", ".tsv", ".jsonl", ".json")
GLUE_FILES = {"train": "train.tsv", "validation": "dev.tsv"}
# The columns of the tasks in `datasets`, which differ from the official files' in MRPC's and CoLA's.
GLUE_COLUMNS = {
    **dict.fromkeys(("cola", "sst2"), ("sentence",)),
    **dict.fromkeys(("mrpc", "rte"), ("sentence1", "sentence2")),
    "qqp": ("question1", "question2"),
    "qnli": ("question", "sentence"),
}
Rows = Iterator[tuple[str, Mapping[str, Any] | str]]  # place in the file -> a row, or what is wrong with it


@dataclass(frozen=True)
class Columns:
    """Which columns hold what; `true_label` is None where labels are not known to be wrong."""

    texts: tuple[str, ...] = ("text",)
    label: str = "label"
    true_label: str | None = None


@dataclass(frozen=True)
class LabelledText:
    """One or several texts, the label they were given, and the true one where it is known."""

    uid: int
    texts: tuple[str, ...]
    label: str
    true_label: str | None = None


@dataclass(frozen=True)
class LabelledFile:
    """The usable samples of a file, those that were left out and why, and the names of the texts.

    `classes` is None where the file does not say which labels there are.
    """

    name: str
    text_names: tuple[str, ...]
    samples: tuple[LabelledText, ...]
    problems: tuple[Problem, ...]
    classes: tuple[str, ...] | None = None

    @property
    def total(self) -> int:
        """Samples in the file, those left out included."""
        return len(self.samples) + len(self.problems)


def read_labelled(path: str | Path, columns: Columns) -> LabelledFile:
    """Read a CSV, TSV, JSON-lines or JSON file (a list of objects).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is of another kind or not UTF-8, lacks a column (says which it has), or no sample can be used.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path}: unknown kind of file; give one that ends in {', '.join(FORMATS)}")
    names, rows = _json_rows(path) if path.suffix.lower().startswith(".json") else _table_rows(path)
    return _labelled(str(path), names, rows, columns)


def read_glue_folder(task: str, folder: str | Path, split: str) -> LabelledFile:
    """Read `train.tsv` or, for the split `validation`, `dev.tsv` of a GLUE task.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not the task's official file, or has no labels.
    """
    path = Path(folder) / GLUE_FILES[split]
    found = read_glue(task, path)
    task_format = GLUE_TASKS[task]
    skipped = {line - 2: Problem(line - 2, f"line {line}: {reason}") for line, reason in found.skipped}
    uids = [i for i in range(len(found.examples) + len(skipped)) if i not in skipped]
    samples, problems = [], list(skipped.values())
    for uid, example in zip(uids, found.examples, strict=True):
        if example.label is None or not any(text.strip() for text in example.texts):
            problems.append(Problem(uid, f"row {uid}: no {'label' if example.label is None else 'text'}"))
        else:
            samples.append(LabelledText(uid, example.texts, task_format.classes[example.label]))
    problems.sort(key=lambda problem: problem.uid)
    file = LabelledFile(str(path), GLUE_COLUMNS[task], tuple(samples), tuple(problems), task_format.classes)
    return _usable(file)


def read_dataset(source: str, split: str, columns: Columns, config: str | None = None) -> LabelledFile:
    """Read a split of a Hugging Face data set: a folder (of `save_to_disk`, or of data files) or a name on the hub.

    Args:
        source: the folder or name.
        split: the split, such as train.
        columns: which columns hold texts and labels.
        config: the configuration of a data set that has several, such as GLUE's tasks.

    Raises:
        ValueError: it cannot be loaded, has no such split or column (says which it has), or no sample can be used.
    """
    found = _load_dataset(source, config)
    if not hasattr(found, "keys"):
        raise ValueError(f"{source}: a single split; save a DatasetDict with splits for training and validation")
    if split not in found:
        raise ValueError(f"{source}: no split {split!r}; it has {', '.join(map(repr, found))}")
    part = found[split]
    labels = [name for name in (columns.label, columns.true_label) if name is not None]
    words = {name: getattr(part.features.get(name), "names", None) for name in labels}
    rows: Rows = ((f"row {i}", _in_words(row, words)) for i, row in enumerate(part))
    file = _labelled(f"{source} ({split})", part.column_names, rows, columns)
    names = words[columns.label]
    return LabelledFile(file.name, file.text_names, file.samples, file.problems, tuple(names) if names else None)


def _load_dataset(source: str, config: str | None) -> Any:
    import datasets

    folder = Path(source)
    saved = any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
    bars = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        if saved:
            return datasets.load_from_disk(source)
        return datasets.load_dataset(source, None if folder.is_dir() else config)
    except Exception as problem:  # of many kinds: of the network, of file formats, of the hub
        reason = " ".join(f"{type(problem).__name__}: {problem}".split())[:300]
        raise ValueError(
            f"{source}: neither a folder with a data set (or, with --task, train.tsv and dev.tsv) nor one that the hub "
            f"gives ({reason})"
        ) from None
    finally:
        if bars:
            datasets.enable_progress_bars()


def _in_words(row: Mapping[str, Any], words: Mapping[str, Sequence[str] | None]) -> Mapping[str, Any]:
    """Replace class ids by the names of the classes; -1 stands for no label."""
    changed = dict(row)
    for name, names in words.items():
        place = row.get(name)
        if names is not None and place is not None:
            changed[name] = names[place] if place >= 0 else None
    return changed


def _table_rows(path: Path) -> tuple[Sequence[str], Rows]:
    """Return the columns of a CSV or TSV file and its rows."""
    lines = read_lines(path)
    if path.suffix.lower() == ".tsv":
        names = lines[0].split("\t")
        return names, _rows(names, ((i, line.split("\t")) for i, line in enumerate(lines[1:], 2)))
    reader = csv.reader((f"{line}\n" for line in lines), strict=True)
    names = next(reader)
    return names, _rows(names, _csv_rows(path, reader))


def _csv_rows(path: Path, reader: Any) -> Iterator[tuple[int, list[str]]]:
    line = reader.line_num + 1
    try:
        for row in reader:
            yield line, row
            line = reader.line_num + 1
    except csv.Error as problem:
        raise ValueError(f"{path}: line {line}: {problem}; close the quotation mark that begins there") from None


def _rows(names: Sequence[str], cells: Iterator[tuple[int, list[str]]]) -> Rows:
    for line, row in cells:
        fits = len(row) == len(names)
        wrong = f"{len(row)} columns, {len(names)} expected"
        yield f"line {line}", dict(zip(names, row, strict=True)) if fits else wrong


def _json_rows(path: Path) -> tuple[Sequence[str], Rows]:
    """Return the keys of the first object, and all objects with their places."""
    lines = read_lines(path)
    if lines[0].lstrip().startswith("["):
        try:
            records = json.loads("\n".join(lines))
        except ValueError as problem:
            raise ValueError(f"{path}: not JSON ({problem})") from None
        found = [(f"record {i}", record) for i, record in enumerate(records)]
    else:
        found = [(f"line {i}", _parsed(line)) for i, line in enumerate(lines, 1)]
    rows = [(place, row if isinstance(row, (dict, str)) else "no JSON object") for place, row in found]
    names = dict.fromkeys(key for _, row in rows if isinstance(row, dict) for key in row)
    return list(names), iter([(p, row if isinstance(row, dict) else "no JSON object") for p, row in rows])


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _labelled(name: str, columns: Sequence[str], rows: Rows, wanted: Columns) -> LabelledFile:
    """Make samples of rows.

    Raises:
        ValueError: a column is missing, or no row can be used.
    """
    if not wanted.texts:
        raise ValueError("text_columns must name at least one column")
    asked = [*wanted.texts, wanted.label, *([wanted.true_label] if wanted.true_label else [])]
    absent = [column for column in asked if column not in columns]
    if absent:
        held = ", ".join(repr(column)[:60] for column in columns)
        raise ValueError(f"{name}: no column {absent[0]!r}; it has {held[:300]}")
    samples, problems = [], []
    for uid, (place, row) in enumerate(rows):
        found = row if isinstance(row, str) else _sample(uid, row, wanted)
        if isinstance(found, str):
            problems.append(Problem(uid, f"{place}: {found}"))
        else:
            samples.append(found)
    return _usable(LabelledFile(name, wanted.texts, tuple(samples), tuple(problems)))


def _sample(uid: int, row: Mapping[str, Any], columns: Columns) -> LabelledText | str:
    """Make a sample of a row, or say why there is none."""
    texts = tuple("" if row.get(name) is None else str(row[name]) for name in columns.texts)
    label = label_word(row.get(columns.label))
    truth = None if columns.true_label is None else label_word(row.get(columns.true_label))
    if not any(text.strip() for text in texts):
        return "no text"
    if label is None:
        return "no label"
    if columns.true_label is not None and truth is None:
        return "no true label"
    return LabelledText(uid, texts, label, truth)


def label_word(value: Any) -> str | None:
    """Write a label as a word; None where there is none.

    >>> label_word(1), label_word(1.0), label_word(" yes "), label_word(True), label_word(""), label_word(float("nan"))
    ('1', '1', 'yes', 'true', None, None)
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip() or None


def _usable(file: LabelledFile) -> LabelledFile:
    if not file.samples:
        first = f"; the first, {file.problems[0].reason}" if file.problems else ""
        raise ValueError(f"{file.name}: none of {file.total} samples can be used{first}")
    return file


def class_names(labels: Sequence[str]) -> tuple[str, ...]:
    """Return the different labels, numbers in their order before words in theirs.

    >>> class_names(["10", "9", "b", "a", "9"])
    ('9', '10', 'a', 'b')
    """

    def order(word: str) -> tuple[int, float, str]:
        try:
            return 0, float(word), word
        except ValueError:
            return 1, 0.0, word

    return tuple(sorted(set(labels), key=order))
