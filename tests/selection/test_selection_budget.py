import pytest

from vlmsel.selection import how_many


@pytest.mark.parametrize(
    ("fraction", "count", "expected"), [(0.2, None, 20), (None, 7, 7), (0.001, None, 1), (1, None, 100)]
)
def test_a_fraction_or_a_count(fraction, count, expected):
    assert how_many(100, fraction, count) == expected


@pytest.mark.parametrize(
    ("fraction", "count", "said"),
    [
        (None, None, "give either fraction or count"),
        (0.1, 3, "give either fraction or count"),
        (0.0, None, "must lie in .0, 1., got 0.0"),
        (1.5, None, "must lie in .0, 1., got 1.5"),
        (None, 101, "between 1 and the pool's 100 samples, got 101"),
        (None, 0, "between 1 and the pool's 100 samples, got 0"),
    ],
)
def test_what_cannot_be_is_refused(fraction, count, said):
    with pytest.raises(ValueError, match=said):
        how_many(100, fraction, count)
