"""Detection rates on cases worked by hand, against all orders of ties, and against scikit-learn's own curves."""

import itertools
import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from vlmsel.studies.detection import (
    accuracy,
    agreement,
    detection_metrics,
    detection_rate,
    found_wrong,
    oracle_rate,
    suspicion,
)

# ten samples; inspected from the highest score: wrong, right, wrong, right x 6, wrong
SCORES = [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0]
WRONG = [True, False, True, *[False] * 6, True]


def test_a_case_worked_by_hand():
    assert found_wrong(SCORES, WRONG).tolist() == [0, 1, 1, 2, 2, 2, 2, 2, 2, 2, 3]
    assert detection_rate(SCORES, WRONG, [0, 0.1, 0.2, 0.3, 0.9, 1]) == pytest.approx(
        [0, 1 / 3, 1 / 3, 2 / 3, 2 / 3, 1]
    )
    assert detection_rate(SCORES, WRONG, 0.25) == pytest.approx(0.5)  # half of the third sample
    found = detection_metrics(SCORES, WRONG)
    assert found["recall_20"] == pytest.approx(1 / 3) and found["recall_40"] == pytest.approx(2 / 3)
    assert found["precision_20"] == pytest.approx(0.5) and found["precision_40"] == pytest.approx(0.5)
    assert found["auc"] == pytest.approx((7 + 6 + 0) / 21)  # right ones below each wrong one, of 3 x 7 pairs
    assert found["average_precision"] == pytest.approx((1 / 1 + 2 / 3 + 3 / 10) / 3)


def test_the_highest_scores_are_inspected_first():
    best = detection_metrics([1.0, 0.0, 0.0, 0.0, 0.0], [True, False, False, False, False])
    worst = detection_metrics([-1.0, 0.0, 0.0, 0.0, 0.0], [True, False, False, False, False])
    assert (best["recall_20"], best["auc"]) == (1.0, 1.0) and (worst["recall_40"], worst["auc"]) == (0.0, 0.0)


def test_ties_count_as_the_mean_over_all_their_orders():
    scores, wrong = np.array([2.0, 1.0, 1.0, 1.0, 0.0]), np.array([False, True, False, True, False])
    means = np.mean(
        [
            found_wrong(scores + np.array([0, *(1e-3 * np.array(order)), 0]), wrong)
            for order in itertools.permutations(range(3))
        ],
        axis=0,
    )
    assert found_wrong(scores, wrong) == pytest.approx(means)


def test_the_area_under_the_curve_of_rates_is_the_auc():
    generator = np.random.default_rng(0)
    scores, wrong = generator.normal(size=200), generator.random(200) < 0.2
    rates, share = found_wrong(scores, wrong) / wrong.sum(), wrong.mean()
    area = (rates[1:] + rates[:-1]).sum() / 2 / 200
    assert (area - share / 2) / (1 - share) == pytest.approx(roc_auc_score(wrong, scores))


def test_an_oracle_reaches_the_oracle_s_curve_and_no_curve_is_above_it():
    wrong = np.array([True] * 40 + [False] * 160)
    inspected = np.linspace(0, 1, 101)
    assert detection_rate(wrong.astype(float), wrong, inspected) == pytest.approx(oracle_rate(0.2, inspected))
    scores = np.random.default_rng(1).normal(size=200)
    assert (detection_rate(scores, wrong, inspected) <= oracle_rate(0.2, inspected) + 1e-12).all()


def test_agreement_is_linear_for_pearson_and_monotone_for_spearman():
    reference = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    assert agreement(3 * reference - 1, reference) == {"pearson": pytest.approx(1), "spearman": pytest.approx(1)}
    bent = agreement(np.exp(3 * reference), reference)
    assert bent["spearman"] == pytest.approx(1) and bent["pearson"] < 0.8
    assert agreement(-reference, reference)["pearson"] == pytest.approx(-1)
    assert all(math.isnan(value) for value in agreement(np.ones(5), reference).values())


def test_suspicion_ranks_from_0_to_1_with_equals_in_the_middle():
    assert suspicion([5.0, 1.0, 3.0, 3.0, -2.0]).tolist() == [1.0, 0.25, 0.625, 0.625, 0.0]
    assert suspicion([7.0]).tolist() == [0.0]


def test_what_cannot_be_measured():
    with pytest.raises(ValueError, match="expected"):
        found_wrong([1.0, 2.0], [True])
    with pytest.raises(ValueError, match="1 scores are not finite"):
        detection_metrics([1.0, math.nan], [True, False])
    for wrong in ([True, True], [False, False]):
        with pytest.raises(ValueError, match="of 2 labels are wrong; detection rates need wrong ones and right ones"):
            detection_metrics([1.0, 2.0], wrong)
    with pytest.raises(ValueError, match="one prediction per label"):
        accuracy([1], [])
