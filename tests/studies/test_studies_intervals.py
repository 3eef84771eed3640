"""Intervals over seeds, by hand and by SciPy."""

import math

import pytest
from scipy import stats

from vlmsel.studies.intervals import differences, interval, summary


def test_an_interval_is_scipy_s():
    values = [71.2, 69.5, 74.1, 70.0]
    mean, half = interval(values)
    low, high = stats.t.interval(0.95, 3, loc=mean, scale=stats.sem(values))
    assert (mean - half, mean + half) == (pytest.approx(low), pytest.approx(high))


def test_one_seed_has_no_interval():
    mean, half = interval([3.0])
    assert mean == 3.0 and math.isnan(half)


def test_what_is_undefined_in_one_seed_has_no_summary():
    assert summary([1.0, None]) == [None, None] and summary([1.0]) == [1.0, None]
    assert summary([1.0, 2.0, 3.0]) == list(interval([1.0, 2.0, 3.0]))


def test_paired_differences_leave_out_what_seeds_have_in_common():
    base, shifts = [10.0, 50.0, 90.0], [1.0, 2.0, 3.0]
    values = [one + shift for one, shift in zip(base, shifts, strict=True)]
    assert differences(values, base) == shifts
    assert interval(differences(values, base))[1] < interval(values)[1]
    with pytest.raises(ValueError, match="zip"):
        differences(values, base[:2])
