"""Labelled texts to train and to validate on: where they lie, and whether their labels go together."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vlmsel.data.glue import GLUE_TASKS
from vlmsel.data.labelled import (
    GLUE_COLUMNS,
    GLUE_FILES,
    Columns,
    LabelledFile,
    class_names,
    label_of,
    read_dataset,
    read_glue_folder,
    read_labelled,
)

MANY = 20  # classes; with more of them than half the samples, the column is hardly one of labels


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

    def read(self) -> tuple[LabelledFile, LabelledFile]:
        """Read both files, the validation file by its true labels where it has them.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: options do not go together, or a file cannot be used.
        """
        task, data = self.task, self.data
        if task is not None and task not in GLUE_TASKS:
            raise ValueError(f"there is no GLUE task {task!r}; choose one of {', '.join(GLUE_TASKS)}")
        if data is None:
            if self.train is None or self.validation is None or task is not None:
                raise ValueError(
                    "give --task and --data (a GLUE folder), --data (a Hugging Face data set), or --train and "
                    "--validation (CSV, TSV or JSON lines)"
                )
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


@dataclass(frozen=True)
class LabelledData:
    """Both files and the classes that their labels are of."""

    train: LabelledFile
    validation: LabelledFile
    classes: tuple[str, ...]
    title: str

    def digests(self) -> dict[str, str]:
        """Hash what was read."""
        files = {"the training data": self.train, "the validation data": self.validation}
        read = {name: repr((file.samples, file.true_labels)) for name, file in files.items()}
        return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in read.items()}


def fit_together(train: LabelledFile, validation: LabelledFile, title: str) -> LabelledData:
    """Check that the labels of both files go together, and print which classes cannot be validated.

    Raises:
        ValueError: there is a single class, or hardly any sample of one, or validation has labels that training lacks.
    """
    given, held = (Counter(map(label_of, file.samples)) for file in (train, validation))
    classes = train.classes or class_names([*given, *train.true_labels.values()])
    if len(given) < 2:
        raise ValueError(f"{train.name}: all labels are {min(given)!r}; detection needs at least two classes")
    if len(given) > max(MANY, len(train.samples) // 2):
        raise ValueError(
            f"{train.name}: {len(given)} different labels in {len(train.samples)} samples; is label_column "
            "the column of the labels?"
        )
    if unknown := {label: count for label, count in held.items() if label not in classes}:
        raise ValueError(
            f"{validation.name}: {sum(unknown.values())} samples have labels that training lacks, the first is "
            f"{next(iter(unknown))[:60]!r} (training has {', '.join(classes)[:200]})"
        )
    require_two(validation.name, held)
    if absent := [label for label in given if label not in held]:
        count, first = sum(given[label] for label in absent), plain(absent[0])[:60]
        print(
            f"{validation.name}: lacks {len(absent)} of {len(classes)} classes, the first is {first!r}; {count} "
            "training samples have them, and nothing speaks for or against these labels"
        )
    return LabelledData(train, validation, classes, plain(title))


def require_two(name: str, labels: Counter[str]) -> None:
    """Refuse validation samples of one class.

    Their gradient is that of a constant answer: scores would tell the classes apart, not right labels from wrong ones.
    """
    if len(labels) < 2:
        raise ValueError(
            f"{name}: all validation labels are {min(labels)!r}, so that scores would tell classes apart and not wrong "
            "labels; add samples of other classes"
        )


def plain(text: str) -> str:
    """Replace what a terminal would not print as it is (control characters, marks that turn the direction)."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
