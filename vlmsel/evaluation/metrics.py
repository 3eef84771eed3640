"""Metrics of VQAv2, GQA, POPE and TextVQA: pure functions of answers and references, as fractions.

VQA soft accuracy (Antol et al. 2015): for each reference the matches among the other nine count, min(matches/3, 1), and
the ten are averaged; with k matching references of ten that is 0, .3, .6, .9, 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from vlmsel.evaluation.vqa_text import strip_blanks, textvqa_answer, vqav2_answer

Normalize = Literal["always", "official"]


def soft_accuracy(prediction: str, references: Sequence[str]) -> float:
    """Score an answer against the references as they stand, each left out once.

    >>> soft_accuracy("red", ["red"] * 2 + ["blue"] * 8), soft_accuracy("red", ["red"] * 10)
    (0.6, 1.0)
    """
    matches = sum(reference == prediction for reference in references)
    scores = [min((matches - (reference == prediction)) / 3, 1.0) for reference in references]
    return sum(scores) / len(scores)


def vqav2_score(prediction: str, references: Sequence[str], normalize: Normalize = "always") -> float:
    """Score an answer to a VQAv2 question.

    `always` normalises both sides, as the metric is documented; `official` is the script's rule since 2021, which
    compares the texts as they stand when all references are equal.
    """
    prediction, references = strip_blanks(prediction), [strip_blanks(reference) for reference in references]
    if normalize == "official" and len(set(references)) == 1:
        return soft_accuracy(prediction, references)
    return soft_accuracy(vqav2_answer(prediction), [vqav2_answer(reference) for reference in references])


def textvqa_score(prediction: str, references: Sequence[str]) -> float:
    """Score an answer to a TextVQA question; both sides are normalised."""
    return soft_accuracy(textvqa_answer(prediction), [textvqa_answer(reference) for reference in references])


def gqa_answer(text: str) -> str:
    """Make an answer comparable to GQA's, as LLaVA does.

    >>> gqa_answer(" Yes.")
    'yes'
    """
    return text.strip().lower().rstrip(".")


def gqa_score(prediction: str, reference: str) -> float:
    """Return 1 for the right answer, 0 otherwise; the reference is compared as it stands."""
    return float(gqa_answer(prediction) == reference)


def pope_answer(text: str) -> Literal["yes", "no"]:
    """Read an answer as POPE's script does: no if the first sentence has the word No, no or not; otherwise yes.

    >>> pope_answer("No, there is none"), pope_answer("NO"), pope_answer("I am not sure")
    ('no', 'yes', 'no')
    """
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def pope_metrics(predictions: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """Compute accuracy, precision, recall, F1 and the share of yes from read answers; yes is the positive class.

    Where the official script divides by zero the value is 0.0, and `undefined` is 1.0.

    >>> pope_metrics(["yes", "no"], ["yes", "yes"])["f1"]
    0.6666666666666666
    """
    pairs = list(zip(predictions, labels, strict=True))
    tp, fp = pairs.count(("yes", "yes")), pairs.count(("yes", "no"))
    tn, fn = pairs.count(("no", "no")), pairs.count(("no", "yes"))
    precision, recall = _ratio(tp, tp + fp), _ratio(tp, tp + fn)
    return {
        "accuracy": _ratio(tp + tn, len(pairs)),
        "precision": precision,
        "recall": recall,
        "f1": _ratio(2 * precision * recall, precision + recall),
        "yes_ratio": _ratio(tp + fp, len(pairs)),
        "undefined": float(0 in (tp + fp, tp + fn) or precision + recall == 0),
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def mean(values: Sequence[float]) -> float:
    """Average scores.

    Raises:
        ValueError: there are none.
    """
    if not values:
        raise ValueError("no question to average over")
    return sum(values) / len(values)
