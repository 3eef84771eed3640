"""What `vlmsel detect` reads: training and validation files, their classes, and what a seed draws from them."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlmsel import runs
from vlmsel.data.glue import GLUE_TASKS
from vlmsel.data.label_noise import flip_labels
from vlmsel.data.labelled import (
    GLUE_COLUMNS,
    GLUE_FILES,
    Columns,
    LabelledFile,
    LabelledText,
    class_names,
    read_dataset,
    read_glue_folder,
    read_labelled,
)
from vlmsel.scoring.batches import seeded_part

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

    def read(self) -> tuple[LabelledFile, LabelledFile]:
        """Read both files.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: options do not go together, or a file cannot be used.
        """
        if self.task is not None and self.task not in GLUE_TASKS:
            raise ValueError(f"there is no GLUE task {self.task!r}; choose one of {', '.join(GLUE_TASKS)}")
        if self.data is None:
            return self._read_files()
        if self.task is not None and _has_official_files(self.data):
            if self.true_label_column is not None:
                raise ValueError("GLUE's files have no column of true labels; leave --true_label_column out")
            train, validation = (read_glue_folder(self.task, self.data, split) for split in ("train", "validation"))
            return train, validation
        columns = self._columns(GLUE_COLUMNS.get(self.task or ""))
        names = self.train or "train", self.validation or "validation"
        train = read_dataset(self.data, names[0], columns, self.task)
        return train, self._validation(
            lambda columns: read_dataset(str(self.data), names[1], columns, self.task), columns
        )

    def _read_files(self) -> tuple[LabelledFile, LabelledFile]:
        if self.train is None or self.validation is None or self.task is not None:
            raise ValueError(
                "give --task and --data (a GLUE folder), --data (a Hugging Face data set), or --train and --validation "
                "(CSV, TSV or JSON lines)"
            )
        columns = self._columns(None)
        train = read_labelled(self.train, columns)
        return train, self._validation(lambda columns: read_labelled(str(self.validation), columns), columns)

    def _columns(self, texts: tuple[str, ...] | None) -> Columns:
        return Columns(self.text_columns or texts or ("text",), self.label_column, self.true_label_column)

    def _validation(self, read: Callable[[Columns], LabelledFile], columns: Columns) -> LabelledFile:
        """Read the validation file by its true labels where it has them, else by its labels."""
        if columns.true_label is not None:
            try:
                return read(Columns(columns.texts, columns.true_label))
            except ValueError as problem:
                if f"no column {columns.true_label!r}" not in str(problem):
                    raise
        return read(Columns(columns.texts, columns.label))


def _has_official_files(folder: str) -> bool:
    return any((Path(folder) / name).is_file() for name in GLUE_FILES.values())


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
        return {name: hashlib.sha256(repr(file.samples).encode()).hexdigest() for name, file in files.items()}


def open_labelled(source: Source, folder: Path) -> LabelledData:
    """Read the data, check that their labels go together, and report what was left out.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file cannot be used, there is a single class, or validation has labels that training lacks.
    """
    train, validation = source.read()
    for name, file in (("train", train), ("validation", validation)):
        _report(file, folder / f"skipped_{name}.json")
    given = Counter(sample.label for sample in train.samples)
    own = Counter(sample.label for sample in validation.samples)
    truths = [sample.true_label for sample in train.samples if sample.true_label is not None]
    classes = train.classes or class_names([*given, *truths])
    if len(given) < 2:
        raise ValueError(f"{train.name}: all labels are {min(given)!r}; detection needs at least two classes")
    if len(given) > max(MANY, len(train.samples) // 2):
        raise ValueError(
            f"{train.name}: {len(given)} different labels in {len(train.samples)} samples; is label_column "
            "the column of the labels?"
        )
    unknown = {label: count for label, count in own.items() if label not in classes}
    if unknown:
        raise ValueError(
            f"{validation.name}: {sum(unknown.values())} samples have labels that training lacks, the first is "
            f"{next(iter(unknown))[:60]!r} (training has {', '.join(classes)[:200]})"
        )
    check_validation(validation.name, own)
    absent = [label for label in given if label not in own]
    if absent:
        count, first = sum(given[label] for label in absent), plain(absent[0])[:60]
        print(
            f"{validation.name}: lacks {len(absent)} of {len(classes)} classes, the first is {first!r}; {count} "
            "training samples have them, and nothing speaks for or against these labels"
        )
    title = source.task or Path(source.data or train.name).name
    return LabelledData(train, validation, classes, plain(title))


def check_validation(name: str, labels: Counter[str]) -> None:
    """Refuse validation samples of one class.

    Their gradient is that of a constant answer: scores would tell the classes apart, not right labels from wrong ones.
    """
    if len(labels) < 2:
        raise ValueError(
            f"{name}: all validation labels are {min(labels)!r}, so that scores would tell classes apart and not wrong "
            "labels; add samples of other classes"
        )


def _report(file: LabelledFile, out: Path) -> None:
    """Write and print which samples were left out; no file when none was."""
    if not file.problems:
        out.unlink(missing_ok=True)
        return
    runs.write_json(out, [{"uid": problem.uid, "reason": problem.reason} for problem in file.problems])
    count = f"{len(file.problems)} of {file.total} samples left out, listed in {out}"
    print(f"{file.name}: {count} (the first, {file.problems[0].reason})")


def plain(text: str) -> str:
    """Replace what a terminal would not print as it is (control characters, marks that turn the direction)."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


@dataclass(frozen=True)
class Drawn:
    """What one seed works on: training samples with the classes they are given and their true ones, if known."""

    train: tuple[LabelledText, ...]
    given: list[int]
    true: list[int] | None
    validation: tuple[LabelledText, ...]
    validation_labels: list[int]

    @property
    def wrong(self) -> list[bool] | None:
        """Which training labels are wrong, if known."""
        return None if self.true is None else [a != b for a, b in zip(self.given, self.true, strict=True)]


def draw(
    data: LabelledData, flip: float, train_samples: int | None, validation_samples: int | None, seed: int
) -> Drawn:
    """Draw a seed's subsets and flips.

    Raises:
        ValueError: only one class is left in one of the subsets.
    """
    train = _part(data.train.samples, train_samples, seed)
    validation = _part(data.validation.samples, validation_samples, seed)
    number = {name: i for i, name in enumerate(data.classes)}
    labels = [number[sample.label] for sample in train]
    true = [number[s.true_label] for s in train if s.true_label is not None] or None
    if flip:
        true = labels
        labels, _ = flip_labels(true, len(data.classes), flip, seed)
    if len(set(labels)) < 2:
        raise ValueError(
            f"{data.train.name}: all of the {len(labels)} samples drawn have one label; raise train_samples"
        )
    check_validation(data.validation.name, Counter(sample.label for sample in validation))
    return Drawn(train, labels, true, validation, [number[sample.label] for sample in validation])


def _part(samples: Sequence[LabelledText], count: int | None, seed: int) -> tuple[LabelledText, ...]:
    return tuple(samples[i] for i in seeded_part(range(len(samples)), count, seed))


def write_labels(path: Path, drawn: Drawn, classes: Sequence[str]) -> None:
    """Write the given labels and, if known, the true ones by uid."""
    with runs.atomic_path(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["uid", "given_label", *(["true_label"] if drawn.true is not None else [])])
        for place, sample in enumerate(drawn.train):
            true = [] if drawn.true is None else [classes[drawn.true[place]]]
            writer.writerow([sample.uid, classes[drawn.given[place]], *true])
