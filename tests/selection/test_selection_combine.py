import math
import random

import numpy as np
import pytest
from small_choices import budget

from vlmsel.selection import combine_targets, top


def test_mean_is_the_influence_on_the_mean_loss():
    assert combine_targets(np.array([[1.0, 2.0], [3.0, 6.0]]), how="mean").tolist() == [2, 4]


def test_rank_lets_every_target_choose_an_equal_part_whatever_its_scale():
    scores = np.random.default_rng(3).normal(size=(3, 400)) * np.array([[1.0], [1000.0], [1e-3]])
    chosen = top(combine_targets(scores), budget(60, 400))
    for row in scores:
        assert len(np.intersect1d(np.argsort(row)[:20], chosen)) == 20
    assert (combine_targets(scores * np.array([[1000.0], [1.0], [1.0]])) == combine_targets(scores)).all()


def test_rank_of_one_target_keeps_the_order_of_its_scores():
    rng = random.Random(4)
    scores = np.array([rng.choice([1.0, 2.0, 3.0]) for _ in range(50)])
    assert (top(combine_targets(scores[None]), budget(20, 50)) == top(scores, budget(20, 50))).all()


@pytest.mark.parametrize("how", ["rank", "mean"])
@pytest.mark.parametrize("missing", [math.nan, math.inf, -math.inf])
def test_a_sample_without_one_of_its_scores_has_no_combined_score_and_does_not_move_the_others(how, missing):
    scores = np.array([[1.0, missing, 0.0], [2.0, -9.0, 1.0]])
    combined = combine_targets(scores, how)
    assert math.isnan(combined[1]) and (combined[2] < combined[0])
    if how == "mean":
        assert combined[[0, 2]].tolist() == combine_targets(scores[:, [0, 2]], how).tolist()


def test_other_ways_are_refused():
    with pytest.raises(ValueError, match="rank or mean, got 'max'"):
        combine_targets(np.ones((1, 1)), "max")
