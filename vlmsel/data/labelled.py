"""Labelled texts for a classifier: GLUE's official files, Hugging Face `datasets`, or CSV, TSV and JSON lines.

A labelled text is a `Sample`: its human turns are the texts, one or several, its answer and its source are the name of
its class. A sample's uid is its position in its file, counted from 0 and including samples that are left out. Labels
are words, by one rule for all files: whole numbers are written without a fraction and true and false small, however a
file writes them, and class ids of `datasets` by their names. Nothing, a blank, NaN and -1 of class ids are no label. A
sample without a label, without any text, or from a malformed row is left out with a reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmsel.checks import quoted
from vlmsel.data.glue import GLUE_TASKS, GlueExample, read_glue
from vlmsel.data.rows import Rows, Unread, read_rows, readable
from vlmsel.data.sample import Problem, Sample, Turn

IDS = ("id", "idx", "index")  # what a column with the data's own names of samples is called
_WHOLE = re.compile(r"(-?[0-9]+)\.0*")
GLUE_FILES = {"train": "train.tsv", "validation": "dev.tsv"}
# The columns of the tasks in `datasets`, which differ from the official files' in MRPC's.
GLUE_COLUMNS = {task: form.texts for task, form in GLUE_TASKS.items()} | {"mrpc": GLUE_TASKS["rte"].texts}


@dataclass(frozen=True)
class Columns:
    """Which columns hold what; `true_label` is None where labels are not known to be wrong."""

    texts: tuple[str, ...] = ("text",)
    label: str = "label"
    true_label: str | None = None


@dataclass(frozen=True)
class LabelledFile:
    """The usable samples of a file, those that were left out and why, and the names of the texts.

    `classes` is None where the file does not say which labels there are; `true_labels` are by uid, where known;
    `spellings` are the ways in which the file writes each label, `ids` its own names of the samples, by uid.
    """

    name: str
    text_names: tuple[str, ...]
    samples: tuple[Sample, ...]
    problems: tuple[Problem, ...]
    classes: tuple[str, ...] | None = None
    true_labels: Mapping[int, str] = field(default_factory=dict)
    spellings: Mapping[str, set[str]] = field(default_factory=dict)
    ids: Mapping[int, str] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Samples in the file, those left out included."""
        return len(self.samples) + len(self.problems)


def labelled_text(uid: int, texts: Sequence[str], label: str) -> Sample:
    """Make a sample of texts and their label.

    >>> labelled_text(0, ["It rains.", "It is wet."], "entailment").said("gpt")
    ('entailment',)
    """
    return Sample(uid, label, (), (*(Turn("human", text) for text in texts), Turn("gpt", label)))


def label_of(sample: Sample) -> str:
    """Return the label of a labelled text."""
    return sample.turns[-1].text


def plain(text: str) -> str:
    """Replace what a terminal would not print as it is (control characters, marks that turn the direction)."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def read_labelled(path: str | Path, columns: Columns) -> LabelledFile:
    """Read a CSV, TSV, JSON-lines or JSON file (a list of objects).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is of another kind or not UTF-8, lacks a column (says which it has), or no sample can be used.
    """
    return _labelled(str(path), *read_rows(path), columns)


def read_glue_folder(task: str, folder: str | Path, split: str) -> LabelledFile:
    """Read `train.tsv` or, for the split `validation`, `dev.tsv` of a GLUE task.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not the task's official file, or has no labels.
    """
    path = Path(folder) / GLUE_FILES[split]
    names, classes = GLUE_COLUMNS[task], GLUE_TASKS[task].classes

    def row(example: GlueExample | Unread) -> Mapping[str, Any] | Unread:
        if isinstance(example, Unread):
            return example
        label = None if example.label is None else classes[example.label]
        return {**dict(zip(names, example.texts, strict=True)), "label": label, "id": example.id}

    found = read_glue(task, path)
    named = any(isinstance(one, GlueExample) and one.id != str(i) for i, (_, one) in enumerate(found))
    rows = [(place, row(example)) for place, example in found]
    return _labelled(str(path), (*names, "label", *(["id"] if named else [])), rows, Columns(names), classes)


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
    rows = ((f"row {i}", _in_words(row, words)) for i, row in enumerate(part))
    classes = tuple(dict.fromkeys(filter(None, map(label_word, words[columns.label] or ())))) or None
    return _labelled(f"{source} ({split})", part.column_names, rows, columns, classes)


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


def _labelled(
    name: str, held: Sequence[str], rows: Rows, columns: Columns, classes: tuple[str, ...] | None = None
) -> LabelledFile:
    """Make samples of rows; `held` are the columns that they have."""
    if not columns.texts:
        raise ValueError("text_columns must name at least one column")
    asked = [*columns.texts, columns.label, *([columns.true_label] if columns.true_label else [])]
    if absent := [column for column in asked if column not in held]:
        shown = ", ".join(repr(column)[:60] for column in held)
        raise ValueError(f"{name}: no column {absent[0]!r}; it has {shown[:300]}")
    samples, problems, truths, ids = [], [], {}, {}
    spellings: dict[str, set[str]] = {}
    own = next((column for column in held if column.lower() in IDS and column not in asked), None)
    for uid, (place, row) in enumerate(rows):
        try:
            texts, label, truth = _fields(readable(row), columns)
        except ValueError as reason:
            problems.append(Problem(uid, f"{place}: {reason}"))
            continue
        samples.append(labelled_text(uid, texts, label))
        if own is not None:
            ids[uid] = "" if row.get(own) is None else str(row[own])
        spellings.setdefault(label, set()).add(written(row[columns.label]))
        if columns.true_label is not None and truth is not None:
            spellings.setdefault(truth, set()).add(written(row[columns.true_label]))
            truths[uid] = truth
    if not samples:
        first = f"; the first, {problems[0].reason}" if problems else ""
        raise ValueError(f"{name}: none of {len(problems)} samples can be used{first}")
    return LabelledFile(name, columns.texts, tuple(samples), tuple(problems), classes, truths, spellings, ids)


def _fields(row: Mapping[str, Any], columns: Columns) -> tuple[list[str], str, str | None]:
    """Take texts, label and true label out of a row, or say what is missing."""
    texts = ["" if row.get(name) is None else str(row[name]) for name in columns.texts]
    label = label_word(row.get(columns.label))
    truth = None if columns.true_label is None else label_word(row.get(columns.true_label))
    if not any(text.strip() for text in texts):
        raise ValueError("no text")
    if label is None:
        raise ValueError("no label")
    if columns.true_label is not None and truth is None:
        raise ValueError("no true label")
    return texts, label, truth


def label_word(value: Any) -> str | None:
    """Write a label as a word; None where there is none.

    >>> [label_word(label) for label in (1, 1.0, "1.0", "01", True, "True", " yes ", None, "", "nan", float("nan"))]
    ['1', '1', '1', '01', 'true', 'true', 'yes', None, None, None, None]
    """
    word = written(value)
    if word.lower() in ("", "nan"):
        return None
    if whole := _WHOLE.fullmatch(word):
        return whole.group(1)
    return word.lower() if word.lower() in ("true", "false") else word


def written(value: Any) -> str:
    """Return a label as its file has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return f"{int(value)}.0"
    return "" if value is None else str(value).strip()


def merged(*files: LabelledFile) -> str:
    """Say which labels are written in several ways in the files; "" when none is."""
    ways: dict[str, set[str]] = {}
    for file in files:
        for word, own in file.spellings.items():
            ways.setdefault(word, set()).update(own)
    several = [f"{quoted(word)} ({', '.join(sorted(own))})" for word, own in ways.items() if len(own) > 1]
    return f"labels that say the same are one class: {', '.join(several)}"[:300] if several else ""


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


@dataclass(frozen=True)
class Source:
    """Where the data lie, as the command was told."""

    task: str | None
    data: str | None
    train: str | None
    validation: str | None
    text_columns: tuple[str, ...] | None
    label_column: str
    true_label_column: str | None

    @property
    def title(self) -> str:
        """The data's name."""
        return self.task or Path(self.data or self.train or "").name

    @property
    def clean(self) -> bool:
        """Tell whether there are samples with clean labels."""
        return self.data is not None or self.validation is not None

    def read(self) -> tuple[LabelledFile, LabelledFile]:
        """Read both files, the validation file by its true labels where it has them; it is empty where there is none.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: options do not go together, or a file cannot be used.
        """
        task, data = self.task, self.data
        if task is not None and task not in GLUE_TASKS:
            raise ValueError(f"there is no GLUE task {task!r}; choose one of {', '.join(GLUE_TASKS)}")
        if data is None:
            if self.train is None or task is not None:
                raise ValueError(
                    "give --task and --data (a GLUE folder), --data (a Hugging Face data set), or --train and "
                    "--validation (CSV, TSV or JSON lines)"
                )
            if self.validation is None:
                columns = Columns(self.text_columns or ("text",), self.label_column, self.true_label_column)
                known = read_labelled(self.train, columns)
                return known, LabelledFile("no validation file", known.text_names, (), ())
            return self._both(read_labelled, self.train, self.validation, ("text",))
        if task is not None and any((Path(data) / name).is_file() for name in GLUE_FILES.values()):
            if self.true_label_column is not None:
                raise ValueError("GLUE's files have no column of true labels; leave --true_label_column out")
            return read_glue_folder(task, data, "train"), read_glue_folder(task, data, "validation")
        texts = GLUE_COLUMNS.get(task or "", ("text",))
        names = self.train or "train", self.validation or "validation"
        return self._both(lambda split, columns: read_dataset(data, split, columns, task), *names, texts)

    def _both(
        self, read: Callable[[str, Columns], LabelledFile], train: str, validation: str, texts: tuple[str, ...]
    ) -> tuple[LabelledFile, LabelledFile]:
        texts, label, truth = self.text_columns or texts, self.label_column, self.true_label_column
        known = read(train, Columns(texts, label, truth))
        try:
            return known, read(validation, Columns(texts, truth or label))
        except ValueError as problem:
            if f"no column {truth!r}" not in str(problem):
                raise
        return known, read(validation, Columns(texts, label))
