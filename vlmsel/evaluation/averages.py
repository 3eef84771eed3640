"""Means over questions and how sure they are: standard errors over the drawing of questions."""

from __future__ import annotations

import math
from collections.abc import Sequence


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
