"""Metrics of benchmarks by the rules of their official scripts: pure functions of answers and references, as fractions.

VQA soft accuracy (Antol et al. 2015): for each reference the matches among the other nine count, min(matches/3, 1), and
the ten are averaged; with k matching references of ten that is 0, .3, .6, .9, 1.

What differs from the scripts: they print percent, we return fractions; where they divide by zero or have no data, that
is told (`undefined`, None) rather than printed as 0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container, Sequence
from typing import Literal

from vlmsel.evaluation.visual.answers import strip_blanks, textvqa_answer, vqav2_answer

Normalize = Literal["always", "official"]
TEXTVQA_REFERENCES = 10
GLUE = {"cola": ("mcc",), "mrpc": ("accuracy", "f1"), "qqp": ("accuracy", "f1")} | dict.fromkeys(
    ("sst2", "qnli", "rte"), ("accuracy",)
)


def require_answers(
    ids: Sequence[str], answers: Container[str], what: str = "questions have no answer", mend: str = ""
) -> None:
    """Refuse answers to some of the questions only.

    Raises:
        ValueError: a question has no answer; says how many, and which is the first.
    """
    if lacking := [identity for identity in ids if identity not in answers]:
        raise ValueError(f"{len(lacking)} of {len(ids)} {what}, the first: {lacking[0]}{mend}")


# Means over questions and their standard errors over the drawing of questions


def mean(values: Sequence[float]) -> float:
    """Average scores.

    Raises:
        ValueError: there are none.
    """
    if not values:
        raise ValueError("no question to average over")
    return sum(values) / len(values)


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of a mean, sqrt(Σ (x - mean)² / (n - 1) / n); NaN for a single value.

    For right and wrong answers that is sqrt(p (1 - p) / (n - 1)), as lm-evaluation-harness has it.

    >>> standard_error([1.0, 0.0, 1.0, 1.0, 0.0])
    0.24494897427831783
    """
    if len(values) < 2:
        return math.nan
    middle = mean(values)
    return math.sqrt(sum((value - middle) ** 2 for value in values) / (len(values) - 1) / len(values))


def f1_error(tp: float, wrong: float) -> float:
    """Return the standard error of F1 = 2a / (2a + b), with a = `tp` true positives and b = `wrong` wrong answers.

    The delta method over questions drawn independently: the influence of a question on F1 is 2b / (2a + b)² where it
    is a true positive and -2a / (2a + b)² where it is wrong, and the sum of squares is 4ab(a + b) / (2a + b)⁴.

    >>> f1_error(3, 0), round(f1_error(30, 20), 4)
    (0.0, 0.0541)
    """
    whole = 2 * tp + wrong
    return 2 * math.sqrt(tp * wrong * (tp + wrong)) / whole**2 if whole else 0.0


# VQAv2 and TextVQA


def soft_accuracy(prediction: str, references: Sequence[str]) -> float:
    """Score an answer against the references as they stand, each left out once.

    Raises:
        ValueError: there is no reference.

    >>> soft_accuracy("red", ["red"] * 2 + ["blue"] * 8), soft_accuracy("red", ["red"] * 10)
    (0.6, 1.0)
    """
    if not references:
        raise ValueError("soft accuracy needs reference answers, got none")
    matches = sum(reference == prediction for reference in references)
    scores = [min((matches - (reference == prediction)) / 3, 1.0) for reference in references]
    return sum(scores) / len(scores)


def vqa_accuracy(prediction: str, answers: Sequence[str], normalize: Normalize = "always") -> float:
    """Score an answer to a VQAv2 question against its reference answers.

    `always` normalises both sides, as the metric is documented; `official` is the script's rule since 2021, which
    compares the texts as they stand when all references are equal.

    Raises:
        ValueError: there is no reference, or no such way to normalise.

    >>> vqa_accuracy("Yes", ["yes"] * 10), vqa_accuracy("Yes", ["yes"] * 10, normalize="official")
    (1.0, 0.0)
    """
    if normalize not in ("always", "official"):
        raise ValueError(f"normalize must be always or official, got {normalize!r}")
    prediction, answers = strip_blanks(prediction), [strip_blanks(answer) for answer in answers]
    if normalize == "official" and len(set(answers)) == 1:
        return soft_accuracy(prediction, answers)
    return soft_accuracy(vqav2_answer(prediction), [vqav2_answer(answer) for answer in answers])


def textvqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Score an answer to a TextVQA question; both sides are normalised.

    Raises:
        ValueError: there are not exactly ten references.
    """
    if len(answers) != TEXTVQA_REFERENCES:
        raise ValueError(f"TextVQA's accuracy needs exactly ten reference answers, got {len(answers)}")
    return soft_accuracy(textvqa_answer(prediction), [textvqa_answer(answer) for answer in answers])


# POPE


def pope_parse(text: str) -> Literal["yes", "no"]:
    """Read an answer as POPE's script does: no if the first sentence has the word No, no or not; otherwise yes.

    >>> pope_parse("No, there is none"), pope_parse("NO"), pope_parse("I am not sure")
    ('no', 'yes', 'no')
    """
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def names_label(text: str) -> bool:
    """Tell whether an answer has any of the words that say yes or no; POPE's script takes one without as yes.

    >>> names_label("YES!"), names_label("a dog")
    (True, False)
    """
    return bool({"yes", "no", "not"} & set(re.findall("[a-z]+", text.lower())))


def pope_metrics(predictions: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """Compute accuracy, precision, recall, F1 and the share of yes from answers as given; yes is the positive class.

    Where the official script divides by zero the value is 0.0, and `undefined` is 1.0. The counts TP, FP, TN and FN
    are given as well.

    Raises:
        ValueError: a label is neither yes nor no, or there are not as many answers as labels.

    >>> pope_metrics(["Yes, there is.", "no"], ["yes", "yes"])["f1"]
    0.6666666666666666
    """
    if strange := set(labels) - {"yes", "no"}:
        raise ValueError(f"POPE's labels are yes and no, got {min(map(repr, strange))}")
    if len(predictions) != len(labels):
        raise ValueError(f"POPE needs one answer per label, got {len(predictions)} answers for {len(labels)} labels")
    pairs = [(pope_parse(prediction), label) for prediction, label in zip(predictions, labels, strict=True)]
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
        **{"TP": tp, "FP": fp, "TN": tn, "FN": fn},
    }


# Text tasks


def multiple_choice(loglikelihoods: Sequence[float], choices: Sequence[str]) -> dict[str, int]:
    """Return which choice is taken by each rule of lm-evaluation-harness; the first of equals.

    `acc` takes the highest log-likelihood, `acc_norm` that per character, `acc_bytes` that per byte of UTF-8. The
    blank which joins a choice to its question does not count.

    Args:
        loglikelihoods: Σ log p over each choice's tokens, in nats.
        choices: the texts of the choices.

    Raises:
        ValueError: a log-likelihood is missing or NaN, or a choice is empty.

    >>> multiple_choice([-4.0, -5.0], ["no", "yes"])
    {'acc': 0, 'acc_norm': 1, 'acc_bytes': 1}
    """
    if len(loglikelihoods) != len(choices) or not choices:
        raise ValueError(f"need one log-likelihood per choice, got {len(loglikelihoods)} for {len(choices)} choices")
    if "" in choices or any(math.isnan(value) for value in loglikelihoods):
        raise ValueError(f"a choice is empty or its log-likelihood NaN: {list(choices)}, {list(loglikelihoods)}")
    lengths = {
        "acc": [1] * len(choices),
        "acc_norm": [len(choice) for choice in choices],
        "acc_bytes": [len(choice.encode()) for choice in choices],
    }
    rated = {name: [a / b for a, b in zip(loglikelihoods, own, strict=True)] for name, own in lengths.items()}
    return {name: values.index(max(values)) for name, values in rated.items()}


def glue_metrics(task: str, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
    """Compute the metrics of a GLUE task: `accuracy`, `f1` of class 1 (mrpc, qqp), or `mcc` (cola).

    The correlation of Matthews is 0 where one side is constant, F1 where class 1 is on neither side.

    Raises:
        ValueError: there is no such task, a label is neither 0 nor 1 (the labels of test splits are -1), or the
            numbers of predictions and references differ.

    >>> glue_metrics("mrpc", [1, 0], [1, 1])
    {'accuracy': 0.5, 'f1': 0.6666666666666666}
    """
    if task not in GLUE:
        raise ValueError(f"no GLUE task is called {task!r}; there are {', '.join(sorted(GLUE))}")
    if len(predictions) != len(references) or not references:
        raise ValueError(f"need one prediction per reference, got {len(predictions)} for {len(references)}")
    if strange := {*predictions, *references} - {0, 1}:
        raise ValueError(f"labels are 0 and 1, got {min(strange)}; is this a test split, whose labels are not public?")
    pairs = list(zip(predictions, references, strict=True))
    tp, fp, tn, fn = (pairs.count(pair) for pair in ((1, 1), (1, 0), (0, 0), (0, 1)))
    every = {
        "accuracy": (tp + tn) / len(pairs),
        "f1": _ratio(2 * tp, 2 * tp + fp + fn),
        "mcc": _ratio(tp * tn - fp * fn, math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))),
    }
    return {name: every[name] for name in GLUE[task]}


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
