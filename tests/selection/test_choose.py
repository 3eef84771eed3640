import math
import random

import pytest

from vlmsel.selection import choose, combine
from vlmsel.selection.choose import wanted


def test_lowest_first_and_ties_by_uid():
    assert choose([5, 3, 9], [1.0, 1.0, -1.0], 3) == [9, 3, 5]


def test_equals_sorting_whole_pool():
    rng = random.Random(0)
    scores = [rng.gauss(0, 1) for _ in range(200)]
    assert choose(range(200), scores, 20) == sorted(range(200), key=scores.__getitem__)[:20]


def test_order_of_rows_does_not_matter():
    rng = random.Random(1)
    rows = [(uid, rng.random()) for uid in range(50)]
    shuffled = random.Random(2).sample(rows, 50)
    assert choose(*zip(*rows, strict=True), 7) == choose(*zip(*shuffled, strict=True), 7)


def test_quota_caps_a_source_and_fills_from_the_rest():
    uids, scores, sources = range(6), [0, 1, 2, 3, 4, 5], ["a", "a", "a", "b", "b", "b"]
    assert choose(uids, scores, 4, sources, {"a": 0.25}) == [0, 3, 4, 5]


def test_non_finite_scores_are_never_chosen():
    with pytest.raises(ValueError, match="3 samples were asked for, only 2"):
        choose([0, 1, 2], [math.nan, 1.0, 2.0], 3)


def test_quota_of_unknown_source():
    with pytest.raises(ValueError, match="source 'c'"):
        choose([0, 1], [0.0, 1.0], 1, ["a", "b"], {"c": 0.5})


def test_combine_by_mean_is_the_influence_on_the_mean_loss():
    assert combine([[1, 2], [3, 6]], how="mean") == [2, 4]


def test_combine_by_rank_lets_every_target_choose_an_equal_part_whatever_its_scale():
    rng = random.Random(3)
    columns = [[scale * rng.gauss(0, 1) for _ in range(400)] for scale in (1, 1000, 1e-3)]
    chosen = choose(range(400), combine(columns), 60)
    for column in columns:
        best = sorted(range(400), key=column.__getitem__)[:20]
        assert len(set(best) & set(chosen)) == 20
    assert combine([[1000 * x for x in columns[0]], *columns[1:]]) == combine(columns)


def test_combine_by_rank_of_one_target_keeps_the_order_of_its_scores():
    rng = random.Random(4)
    scores = [rng.choice([1.0, 2.0, 3.0]) for _ in range(50)]
    assert choose(range(50), combine([scores]), 20) == choose(range(50), scores, 20)


@pytest.mark.parametrize("how", ["rank", "mean"])
def test_a_sample_without_one_of_its_scores_has_no_combined_score(how):
    combined = combine([[1.0, math.nan, 0.0], [2.0, -9.0, 1.0]], how)
    assert math.isnan(combined[1]) and combined[2] < combined[0]


def test_combine_refuses_other_ways():
    with pytest.raises(ValueError, match="rank or mean, got 'max'"):
        combine([[1.0]], "max")


@pytest.mark.parametrize(
    ("fraction", "count", "expected"), [(0.2, None, 20), (None, 7, 7), (0.001, None, 1), (1, None, 100)]
)
def test_wanted(fraction, count, expected):
    assert wanted(100, fraction, count) == expected


@pytest.mark.parametrize(
    ("fraction", "count"), [(None, None), (0.1, 3), (0.0, None), (1.5, None), (None, 101), (None, 0)]
)
def test_wanted_refuses(fraction, count):
    with pytest.raises(ValueError):
        wanted(100, fraction, count)
