"""Means over seeds and how sure they are: Student's t at 95 %, and differences paired by seed.

All arms of a seed start from the same data and the same model, so that the differences within seeds vary less than the
arms do; their interval is the one to look at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy import stats


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the half-width of its 95 % t-interval (NaN for a single value).

    >>> mean, half = interval([1.0, 2.0, 3.0])
    >>> round(mean, 3), round(half, 3)
    (2.0, 2.484)
    """
    count = len(values)
    mean = sum(values) / count
    if count < 2:
        return mean, math.nan
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    return mean, float(stats.t.ppf(0.975, count - 1)) * deviation / math.sqrt(count)


def summary(values: Sequence[float | None]) -> list[float | None]:
    """Return mean and half-width as JSON takes them: None for a half-width of one value, and for both where a value is
    not defined.

    >>> summary([2.0]), summary([2.0, None])
    ([2.0, None], [None, None])
    """
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return [None, None]
    mean, half = interval(known)
    return [mean, None if math.isnan(half) else half]


def differences(values: Sequence[float], base: Sequence[float]) -> list[float]:
    """Return values minus those of a base, seed by seed.

    >>> differences([3.0, 5.0], [1.0, 2.0])
    [2.0, 3.0]
    """
    return [value - other for value, other in zip(values, base, strict=True)]
