"""What `vlmsel detect` works on: labels that go together, what was left out, and what a seed draws from the rest."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from vlmsel import runs
from vlmsel.checks import check_at_least_one, given, quoted
from vlmsel.data.cleaned import Clean
from vlmsel.data.label_noise import flip_labels
from vlmsel.data.labelled import LabelledFile, Source, class_names, label_of, labelled_text, merged, plain
from vlmsel.data.sample import Sample
from vlmsel.scoring.batches import seeded_part

MANY = 20  # classes; with more of them than half the samples, the column is hardly one of labels


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


def open_labelled(source: Source, folder: Path) -> LabelledData:
    """Read the data, report what was left out, and check that their labels go together.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file cannot be used, there is a single class, or validation has labels that training lacks.
    """
    train, validation = source.read()
    for name, file in (("train", train), ("validation", validation)):
        reasons = {problem.uid: problem.reason for problem in file.problems}
        runs.report_left_out(folder / f"skipped_{name}.json", reasons, file.total, file.name)
    if said := merged(train, validation):
        print(said)
    return fit_together(train, validation, source.title)


def fit_together(train: LabelledFile, validation: LabelledFile, title: str) -> LabelledData:
    """Check that the labels of both files go together, and print which classes cannot be validated.

    Raises:
        ValueError: there is a single class, or hardly any sample of one, or validation has labels that training lacks.
    """
    given, held = (Counter(map(label_of, file.samples)) for file in (train, validation))
    classes = train.classes or class_names([*given, *train.true_labels.values()])
    if len(given) < 2:
        raise ValueError(f"{train.name}: all labels are {quoted(min(given))}; detection needs at least two classes")
    if len(given) > max(MANY, len(train.samples) // 2):
        raise ValueError(
            f"{train.name}: {len(given)} different labels in {len(train.samples)} samples; is label_column "
            "the column of the labels?"
        )
    if unknown := {label: count for label, count in held.items() if label not in classes}:
        raise ValueError(
            f"{validation.name}: {sum(unknown.values())} samples have labels that training lacks, the first is "
            f"{quoted(next(iter(unknown)))} (training has {', '.join(classes)[:200]})"
        )
    if not validation.samples:
        return LabelledData(train, validation, classes, plain(title))
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
            f"{name}: all validation labels are {quoted(min(labels))}, so that scores would tell classes apart and not "
            "wrong labels; add samples of other classes"
        )


@dataclass(frozen=True)
class Drawn:
    """What one seed works on: samples with the labels they are given, and their true ones in the same order, if
    known."""

    train: tuple[Sample, ...]
    true: tuple[str, ...] | None
    validation: tuple[Sample, ...]

    @property
    def given(self) -> list[str]:
        """The labels that the training samples are given."""
        return [label_of(sample) for sample in self.train]

    @property
    def wrong(self) -> list[bool] | None:
        """Which training labels are wrong, if known."""
        return None if self.true is None else [a != b for a, b in zip(self.given, self.true, strict=True)]


@dataclass(frozen=True)
class Amounts:
    """How many samples a seed draws, all when None, and the share of training labels that it flips."""

    flip: float
    train: int | None
    validation: int | None

    @classmethod
    def of(cls, source: Source, flip: float | None, train: int | None, validation: int | None) -> Amounts:
        """Fill in what was left out: the papers' amounts for GLUE's tasks, all as it is for own data.

        Raises:
            ValueError: the share is no share, a count is below 1, or labels would be flipped whose true ones are known.
        """
        check_at_least_one(train_samples=train, validation_samples=validation)
        usual = PAPERS if source.task is not None else cls(0.0, None, None)
        found = replace(usual, **given(flip=flip, train=train, validation=validation))
        if not 0 <= found.flip < 1:
            raise ValueError(f"flip must be a share from 0 to below 1, got {found.flip}")
        if found.flip and source.true_label_column is not None:
            raise ValueError("flip and true_label_column exclude each other: leave one out")
        return found


def check_folds(source: Source, flip: float, folds: int | None, clean: Clean | None) -> None:
    """Check that what needs folds has them, and that they are several.

    Raises:
        ValueError: there are less than 2, or none without clean samples; or a file is to be cleaned and there is none,
            nothing that says of how many labels, or labels that were flipped on purpose.
    """
    if folds is not None and folds < 2:
        raise ValueError(f"folds must be at least 2, got {folds}; leave it out to do without")
    if folds is None and source.train is not None and not source.clean:
        raise ValueError(
            f"{source.train}: no samples with clean labels beside it; give --validation, or --folds 5 to have every "
            "sample judged by models that have not seen it"
        )
    if clean is not None and (folds is None or flip or source.data is not None):
        raise ValueError(
            "clean takes labels out of your own --train file as it is: give it without --data and --flip, and with "
            "--folds 5, whose models tell how many are wrong"
        )


PAPERS = Amounts(flip=0.2, train=4500, validation=500)


def draw(data: LabelledData, amounts: Amounts, seed: int) -> Drawn:
    """Draw a seed's subsets and flips.

    Raises:
        ValueError: only one class is left in one of the subsets.
    """
    train = _part(data.train, amounts.train, seed)
    validation = _part(data.validation, amounts.validation, seed)
    truths = data.train.true_labels
    true = tuple(truths[sample.uid] for sample in train) if truths else None
    if amounts.flip:
        true, number = tuple(map(label_of, train)), {name: i for i, name in enumerate(data.classes)}
        flipped = flip_labels([number[label] for label in true], len(data.classes), amounts.flip, seed)
        pairs = zip(train, flipped, strict=True)
        train = tuple(labelled_text(one.uid, one.said("human"), data.classes[label]) for one, label in pairs)
    if len(set(map(label_of, train))) < 2:
        raise ValueError(
            f"{data.train.name}: all of the {len(train)} samples drawn have one label; raise train_samples"
        )
    if validation:
        require_two(data.validation.name, Counter(map(label_of, validation)))
    return Drawn(train, true, validation)


def _part(file: LabelledFile, count: int | None, seed: int) -> tuple[Sample, ...]:
    return tuple(file.samples[i] for i in seeded_part(range(len(file.samples)), count, seed))


def write_labels(path: Path, drawn: Drawn) -> None:
    """Write the given labels and, if known, the true ones by uid."""
    uids, columns = [sample.uid for sample in drawn.train], {"given_label": drawn.given}
    if drawn.true is not None:
        columns["true_label"] = list(drawn.true)
    runs.write_csv(path, [("uid", *columns), *zip(uids, *columns.values(), strict=True)])
