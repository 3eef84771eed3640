import numpy as np
import pytest

from vlmsel.selection import Ask, Facts, how_many
from vlmsel.selection.budget import apportion


@pytest.mark.parametrize(
    ("fraction", "count", "expected"), [(0.2, None, 20), (None, 7, 7), (0.001, None, 1), (1, None, 100)]
)
def test_a_fraction_or_a_count(fraction, count, expected):
    assert how_many(100, fraction, count) == expected


@pytest.mark.parametrize(
    ("amount", "said"),
    [
        ({}, "give one of fraction, count and tokens"),
        ({"fraction": 0.1, "count": 3}, "give one of fraction, count and tokens"),
        ({"tokens": 10, "count": 3}, "give one of fraction, count and tokens"),
        ({"fraction": 0.0}, "must lie in .0, 1., got 0.0$"),
        ({"fraction": 20}, "must lie in .0, 1., got 20 .20 % is 0.2"),
        ({"count": 101}, "between 1 and the pool's 100 samples, got 101"),
        ({"count": 0}, "between 1 and the pool's 100 samples, got 0"),
        ({"tokens": 0}, "tokens must be at least 1, got 0"),
        ({"tokens": 5}, "how long samples are stands in the score table; give --scores too"),
    ],
)
def test_what_cannot_be_is_refused(amount, said):
    with pytest.raises(ValueError, match=said):
        Ask(**amount).budget(Facts(np.full(100, "a"), np.ones(100, dtype=bool)))


def test_tokens_are_the_supervised_ones_where_the_table_has_them():
    table = {"source": np.array(["a", "b"], object), "loss": np.array([1.0, np.nan]), "tokens": np.array([5, 0])}
    assert Ask(tokens=3).budget(Facts.of_table(table)).costs.tolist() == [5, 0]
    facts = Facts.of_table({**table, "supervised": np.array([2.0, np.nan])})
    assert Ask(tokens=3).budget(facts).costs.tolist() == [2, 0] and facts.supervised
    assert facts.usable.tolist() == [True, False]


@pytest.mark.parametrize("seed", range(30))
def test_parts_add_up_and_are_near_their_shares(seed):
    rng = np.random.default_rng(seed)
    shares, room = rng.random(6) * rng.choice([0, 1], size=6), rng.integers(0, 60, size=6)
    total = int(rng.integers(1, 120))
    parts = apportion(total, shares, room)
    assert parts.sum() == min(total, room[shares > 0].sum()) and (parts <= room).all() and (parts >= 0).all()
    free = (parts < room) & (shares > 0)
    if free.sum() > 1:  # those with room left share what the others have left over
        level = parts[free].sum() / shares[free].sum()
        assert (abs(parts[free] - level * shares[free]) < 1 + 1e-9).all()
        assert (room[~free & (shares > 0)] <= level * shares[~free & (shares > 0)] + 1).all()
