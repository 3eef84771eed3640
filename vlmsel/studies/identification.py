"""Identification of influential data (DataInf, Kwon et al. 2023, arXiv 2310.00902): does a scorer find the training
samples of a test sample's own class?

A model is tuned on samples of several classes, such as ten kinds of sums, and every test sample is a target of its own.
Its positives are the training samples of its class, and

    AUC     how well -I, the negative influence, ranks positives before the others (1/2 by chance)
    recall  the share of positives among the s training samples of lowest influence, s = number of positives

Influence has its sign here (lowest = most helpful), as the paper has it, not its absolute value; the paper's published
notebooks look at the lowest influences too, but hold no code for these two numbers. What differs: samples of equal
influence count as ranked by chance, so that a scorer that says nothing has AUC 1/2 and a recall of s/n whatever the
order of the file; and standard errors are given, over the drawing of test samples for one tuned model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sklearn.metrics import roc_auc_score

from vlmsel.evaluation.metrics import mean, standard_error


@dataclass(frozen=True)
class Identified:
    """How well the training samples of one test sample's class are found."""

    kind: str  # the class
    auc: float
    recall: float


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (n - 1) over test samples, and the standard error of the mean; NaN for one sample."""

    mean: float
    deviation: float
    error: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise values.

        >>> Spread.of([0.0, 1.0, 1.0, 0.0]).mean
        0.5
        """
        error = standard_error(values)
        return cls(mean(values), error * math.sqrt(len(values)), error, len(values))


def detection_auc(influences: Sequence[float], positives: Sequence[bool]) -> float:
    """Return the chance that a positive has lower influence than another sample, ties counting half.

    >>> detection_auc([-3.0, -1.0, -2.0, 0.0], [True, True, False, False])
    0.75
    """
    return float(roc_auc_score(positives, [-influence for influence in influences]))


def class_recall(influences: Sequence[float], positives: Sequence[bool]) -> float:
    """Return the share of positives among as many samples of lowest influence, expected over the order of ties.

    >>> class_recall([-3.0, -1.0, -2.0, 0.0], [True, True, False, False])
    0.5
    >>> class_recall([0.0, 0.0, 0.0, 0.0], [True, False, False, False])
    0.25
    """
    places = sum(positives)
    last = sorted(influences)[places - 1]
    below = [positive for value, positive in zip(influences, positives, strict=True) if value < last]
    tied = [positive for value, positive in zip(influences, positives, strict=True) if value == last]
    return (sum(below) + sum(tied) * (places - len(below)) / len(tied)) / places


def identify(
    influences: Sequence[Sequence[float]], train_kinds: Sequence[str], test_kinds: Sequence[str]
) -> list[Identified]:
    """Measure every test sample.

    Args:
        influences: of all training samples on each test sample, [test, train]; lowest = most helpful.
        train_kinds: the classes of the training samples.
        test_kinds: the classes of the test samples.

    Raises:
        ValueError: numbers do not match or are not finite, or a class has no training sample or is the only one.
    """
    if len(influences) != len(test_kinds):
        raise ValueError(f"got influences on {len(influences)} test samples and the classes of {len(test_kinds)}")
    found = []
    for number, (row, kind) in enumerate(zip(influences, test_kinds, strict=True)):
        _check(row, train_kinds, f"test sample {number}")
        positives = [one == kind for one in train_kinds]
        if not any(positives) or all(positives):
            raise ValueError(
                f"test sample {number}: {sum(positives)} of {len(positives)} training samples are of its class "
                f"{kind!r}; give training samples of its class and of another"
            )
        found.append(Identified(kind, detection_auc(row, positives), class_recall(row, positives)))
    return found


def _check(row: Sequence[float], train_kinds: Sequence[str], where: str) -> None:
    if len(row) != len(train_kinds):
        raise ValueError(f"{where}: got {len(row)} influences and the classes of {len(train_kinds)} training samples")
    if bad := [uid for uid, value in enumerate(row) if not math.isfinite(value)]:
        raise ValueError(f"{where}: {len(bad)} training samples have no influence, the first {bad[0]}; leave them out")


def summary(found: Sequence[Identified]) -> dict[str, Spread]:
    """Return AUC and recall over test samples."""
    return {"auc": Spread.of([one.auc for one in found]), "recall": Spread.of([one.recall for one in found])}


def by_class(found: Sequence[Identified]) -> dict[str, dict[str, Spread]]:
    """Return AUC and recall over the test samples of each class, in the order of their first ones."""
    return {kind: summary([one for one in found if one.kind == kind]) for kind in dict.fromkeys(o.kind for o in found)}
