"""What `vlmsel detect` works on: what was left out of its files, and what a seed draws from the rest."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from vlmsel import runs
from vlmsel.data.label_noise import flip_labels
from vlmsel.data.labelled import LabelledFile, label_of, relabelled
from vlmsel.data.labelled_sets import LabelledData, Source, fit_together, require_two
from vlmsel.data.sample import Sample
from vlmsel.scoring.batches import seeded_part


def open_labelled(source: Source, folder: Path) -> LabelledData:
    """Read the data, report what was left out, and check that their labels go together.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file cannot be used, there is a single class, or validation has labels that training lacks.
    """
    train, validation = source.read()
    for name, file in (("train", train), ("validation", validation)):
        _report(file, folder / f"skipped_{name}.json")
    return fit_together(train, validation, source.title)


def _report(file: LabelledFile, out: Path) -> None:
    """Write and print which samples were left out; no file when none was."""
    if not file.problems:
        out.unlink(missing_ok=True)
        return
    runs.write_json(out, [{"uid": problem.uid, "reason": problem.reason} for problem in file.problems])
    count = f"{len(file.problems)} of {file.total} samples left out, listed in {out}"
    print(f"{file.name}: {count} (the first, {file.problems[0].reason})")


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


def draw(
    data: LabelledData, flip: float, train_samples: int | None, validation_samples: int | None, seed: int
) -> Drawn:
    """Draw a seed's subsets and flips.

    Raises:
        ValueError: only one class is left in one of the subsets.
    """
    train = _part(data.train, train_samples, seed)
    validation = _part(data.validation, validation_samples, seed)
    truths = data.train.true_labels
    true = tuple(truths[sample.uid] for sample in train) if truths else None
    if flip:
        true, number = tuple(map(label_of, train)), {name: i for i, name in enumerate(data.classes)}
        flipped, _ = flip_labels([number[label] for label in true], len(data.classes), flip, seed)
        train = tuple(relabelled(one, data.classes[label]) for one, label in zip(train, flipped, strict=True))
    if len(set(map(label_of, train))) < 2:
        raise ValueError(
            f"{data.train.name}: all of the {len(train)} samples drawn have one label; raise train_samples"
        )
    require_two(data.validation.name, Counter(map(label_of, validation)))
    return Drawn(train, true, validation)


def _part(file: LabelledFile, count: int | None, seed: int) -> tuple[Sample, ...]:
    return tuple(file.samples[i] for i in seeded_part(range(len(file.samples)), count, seed))


def write_labels(path: Path, drawn: Drawn) -> None:
    """Write the given labels and, if known, the true ones by uid."""
    uids, columns = [sample.uid for sample in drawn.train], {"given_label": drawn.given}
    if drawn.true is not None:
        columns["true_label"] = list(drawn.true)
    with runs.atomic_path(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["uid", *columns])
        writer.writerows(zip(uids, *columns.values(), strict=True))
