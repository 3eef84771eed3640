"""AUC and recall of same-class training samples: by hand, against plain twins, and what must not change them."""

import math
import random

import pytest

from tools.identification_table import (
    Identified,
    Spread,
    by_class,
    class_recall,
    detection_auc,
    identify,
    summary,
)

KINDS = ["a", "a", "b", "b", "b", "c"]


def naive_auc(influences, positives):
    """Count the pairs in which the positive has lower influence."""
    pairs = [(p, n) for p, same in zip(influences, positives, strict=True) if same
             for n, other in zip(influences, positives, strict=True) if not other]  # fmt: skip
    return sum(1.0 if p < n else 0.5 if p == n else 0.0 for p, n in pairs) / len(pairs)


def naive_recall(influences, positives, orders, rng):
    """Average over shuffled files the share of positives in front of a stable sort."""
    total, places = 0.0, sum(positives)
    for _ in range(orders):
        samples = list(zip(influences, positives, strict=True))
        rng.shuffle(samples)
        total += sum(same for _, same in sorted(samples, key=lambda one: one[0])[:places]) / places
    return total / orders


def test_worked_by_hand():
    found = identify([[-5, -1, -3, 0, 2, -4], [9, 3, -3, -2, -1, 7]], KINDS, ["a", "b"])
    # a: -5 is below all 4 others, -1 is below 0 and 2 only; the two lowest are -5 (a) and -4 (c)
    # b: the three of its class are the three lowest
    assert found == [Identified("a", 6 / 8, 0.5), Identified("b", 1.0, 1.0)]


def test_the_sign_counts_and_not_the_absolute_value():
    (helpful,), (harmful,) = (identify([[s * 9, s * 8, 0, 0, 0, 0]], KINDS, ["a"]) for s in (-1.0, 1.0))
    assert (helpful.auc, helpful.recall, harmful.auc, harmful.recall) == (1, 1, 0, 0)


@pytest.mark.parametrize("values", [1000, 3], ids=["no ties", "many ties"])
def test_plain_twins_agree(values):
    rng = random.Random(values)
    for _ in range(10):
        influences = [float(rng.randrange(values)) for _ in range(20)]
        positives = [rng.random() < 0.4 for _ in range(18)] + [True, False]
        assert detection_auc(influences, positives) == pytest.approx(naive_auc(influences, positives))
        expected = naive_recall(influences, positives, 2000, rng)
        assert class_recall(influences, positives) == pytest.approx(expected, abs=0.03)


def test_only_order_counts():
    rng = random.Random(0)
    row = [rng.gauss(0, 1) for _ in KINDS]
    stretched = [math.exp(3 * value) + 7 for value in row]
    order = rng.sample(range(len(KINDS)), len(KINDS))
    expected = identify([row], KINDS, ["b"])
    assert identify([stretched], KINDS, ["b"]) == expected
    assert identify([[row[i] for i in order]], [KINDS[i] for i in order], ["b"]) == expected


def test_a_scorer_that_says_nothing_finds_by_chance():
    (found,) = identify([[0.0] * 6], KINDS, ["b"])
    assert (found.auc, found.recall) == (0.5, 0.5)


def test_summaries_by_hand():
    found = [Identified("a", 1.0, 0.5), Identified("b", 0.5, 1.0), Identified("a", 0.0, 0.5)]
    assert summary(found)["auc"] == Spread(0.5, pytest.approx(0.5), pytest.approx(0.5 / math.sqrt(3)), 3)
    assert summary(found)["recall"].mean == pytest.approx(2 / 3)
    kinds = by_class(found)
    assert list(kinds) == ["a", "b"] and kinds["a"]["auc"].deviation == pytest.approx(math.sqrt(0.5))
    assert kinds["b"]["recall"].mean == 1.0 and math.isnan(kinds["b"]["recall"].error)


@pytest.mark.parametrize(
    ("influences", "test", "said"),
    [
        ([[0.0] * 6], ["a", "b"], "influences on 1 test samples and the classes of 2"),
        ([[0.0] * 5], ["a"], "test sample 0: got 5 influences and the classes of 6"),
        ([[0.0] * 6, [0.0, math.nan, 0, 0, math.inf, 0]], ["a", "a"], "test sample 1: 2 training samples .* first 1"),
        ([[0.0] * 6], ["d"], "0 of 6 training samples are of its class 'd'"),
    ],
)
def test_what_cannot_be_measured_is_refused(influences, test, said):
    with pytest.raises(ValueError, match=said):
        identify(influences, KINDS, test)


def test_one_class_alone_cannot_be_told_apart():
    with pytest.raises(ValueError, match="2 of 2 training samples"):
        identify([[0.0, 1.0]], ["a", "a"], ["a"])
