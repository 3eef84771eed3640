"""Folds that are even, and confident learning's estimate against loops over samples and classes."""

import math
from collections import Counter

import numpy as np
import pytest

from vlmsel.studies.out_of_fold import LEVEL, Judged, folds_of

CLASSES = ("a", "b", "c")


def judged(count, seed=0, classes=CLASSES, given=2):
    """Random probabilities and labels, of the first `given` classes alone."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, given, count)
    labels[:given] = range(given)
    return Judged(list(range(7, 7 + count)), classes, labels, draw.dirichlet(np.ones(len(classes)), count))


@pytest.mark.parametrize("folds", [2, 3, 7])
def test_every_fold_has_its_share_of_every_class(folds):
    labels = ["a"] * 30 + ["b"] * 11 + ["c"] * 7
    fold = folds_of(labels, folds, seed=3)
    assert Counter(fold.tolist()).keys() == set(range(folds))
    for name in CLASSES:
        own = Counter(f for f, label in zip(fold.tolist(), labels, strict=True) if label == name)
        assert len(own) == folds and max(own.values()) - min(own.values()) <= 1
    assert max(Counter(fold.tolist()).values()) - min(Counter(fold.tolist()).values()) <= 1
    assert fold.tolist() == folds_of(labels, folds, 3).tolist() != folds_of(labels, folds, 4).tolist()


def test_more_folds_than_samples_of_a_class_are_refused():
    with pytest.raises(ValueError, match="folds: 3 are more than the 2 samples of the class 'b'; give fewer"):
        folds_of(["a", "a", "a", "b", "b"], 3, seed=0)


def thresholds(given, table):
    """A class's mean probability over the samples that are given it."""
    found = {}
    for k in range(len(CLASSES)):
        own = [row[k] for label, row in zip(given, table, strict=True) if label == k]
        found[k] = math.fsum(own) / len(own) if own else math.inf
    return found


def wrong_by_loops(given, table):
    limit, total = thresholds(given, table), 0
    for label, row in zip(given, table, strict=True):
        over = [k for k in range(len(row)) if row[k] >= limit[k]]
        total += bool(over) and max(over, key=lambda k: row[k]) != label
    return total


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("given", [2, 3])
def test_the_estimate_is_that_of_loops_over_samples_and_classes(seed, given):
    found = judged(40, seed, given=given)
    labels, table = found.given.tolist(), found.probabilities.tolist()
    assert found.wrong() == wrong_by_loops(labels, table) > 0
    limit = thresholds(labels, table)
    sure = [row[label] >= limit[label] for label, row in zip(labels, table, strict=True)]
    assert found.confident().tolist() == sure and {labels[i] for i in range(40) if sure[i]} == set(labels)


def test_sure_models_give_the_very_number_and_equal_probabilities_none():
    given = np.array([0] * 6 + [1] * 6)
    true = given.copy()
    true[[0, 1, 8]] = 1 - true[[0, 1, 8]]
    assert Judged(range(12), "ab", given, np.eye(2)[true] * 0.8 + 0.1).wrong() == 3
    same = Judged(range(12), "ab", given, np.tile([0.3, 0.7], (12, 1)))
    assert same.confident().all()


def test_the_likely_label_is_the_most_probable_of_the_others():
    found = judged(20, 1)
    head, *rows = found.likely()
    assert head == ("uid", "likely_label", "likely", "confidence")
    for (_, name, likely, own), given, row in zip(rows, found.given, found.probabilities, strict=True):
        others = {k: p for k, p in enumerate(row) if k != given}
        best = max(others, key=others.__getitem__)
        assert (name, likely, own) == (
            CLASSES[best],
            pytest.approx(row[best], abs=1e-6),
            pytest.approx(row[given], abs=1e-6),
        )
    assert [row[0] for row in rows] == list(range(7, 27))


def chance(right, count, share):
    """How probable at least so many hits are."""
    return sum(math.comb(count, k) * share**k * (1 - share) ** (count - k) for k in range(right, count + 1))


@pytest.mark.parametrize("right", [30, 34, 36, 37, 50])
def test_there_is_an_estimate_only_where_an_exact_test_says_that_something_was_learnt(right):
    count, most = 50, 30
    given = np.array([0] * most + [1] * (count - most))
    answers = given.copy()
    answers[right:] = 1 - answers[right:]
    found = Judged(range(count), "ab", given, np.eye(2)[answers] * 0.8 + 0.1).estimate()
    assert (found["accuracy"], found["majority"]) == (right / count, most / count)
    assert found["p"] == pytest.approx(chance(right, count, most / count))
    assert (found["wrong"] is None) == (found["p"] >= LEVEL) == (right < 37)
    assert found["wrong"] is None or found["wrong"] == count - right
