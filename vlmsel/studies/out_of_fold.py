"""Labels judged by classifiers: how probable each given one is, which other is likely, and how many are wrong.

    c_i = p(given label of i)          self-confidence; lowest = most suspicious, so that 1 - c_i ranks as scores do

A classifier learns wrong labels by heart, so c_i counts out of fold: by a classifier that was trained on the other
folds. How many labels are wrong is confident learning's estimate (Northcutt et al., arXiv 1911.00068):

    t_k  = mean of c_i over the samples given k
    k_i  = the most probable of the classes with p_i(k) >= t_k; samples without any do not count
    C_jk = number of samples given j with k_i = k
    wrong = sum of C_jk over j != k

The paper also scales the rows of C to the numbers of samples given j, as if wrong labels were as frequent among those
that do not count; here that came out higher still. The weaker the classifiers, the more the estimate exceeds the truth.

Classifiers that have learnt nothing still have samples on either side of their thresholds, and the estimate would be
noise; so there is one only where they are right more often than always answering the most frequent label would be, by
an exact binomial test.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

from vlmsel.checks import quoted
from vlmsel.studies.detection import accuracy

LEVEL = 0.05  # of the test


def folds_of(labels: Sequence[str], folds: int, seed: int) -> Int[np.ndarray, " n"]:
    """Return the fold of each sample, drawn from the seed; every fold has its share of every class.

    Raises:
        ValueError: a class has fewer samples than there are folds.

    >>> np.bincount(folds_of(["a", "b", "a", "b", "a", "b"], 3, seed=0)).tolist()
    [2, 2, 2]
    """
    label, count = min(Counter(labels).items(), key=lambda one: one[1])
    if count < folds:
        raise ValueError(
            f"folds: {folds} are more than the {count} samples of the class {quoted(label, 60)}; give fewer "
            "or leave rare classes out"
        )
    shuffled = np.random.default_rng([*b"folds", seed]).permutation(len(labels))
    order = sorted(shuffled.tolist(), key=labels.__getitem__)
    fold = np.empty(len(labels), np.int64)
    fold[order] = np.arange(len(labels)) % folds
    return fold


@dataclass(frozen=True)
class Judged:
    """What classifiers say of samples.

    Attributes:
        uids: the samples. [n]
        classes: names of the classes.
        given: the class that each is labelled with. [n]
        probabilities: of the classes. [n, classes]
    """

    uids: Sequence[int]
    classes: Sequence[str]
    given: Int[np.ndarray, " n"]
    probabilities: Float[np.ndarray, "n classes"]

    @property
    def confidence(self) -> Float[np.ndarray, " n"]:
        """Self-confidence."""
        return self.probabilities[np.arange(len(self.given)), self.given]

    def accuracy(self) -> dict[str, float]:
        """Return how often the most probable class is the given one, and the share of the most frequent label."""
        return accuracy(self.probabilities.argmax(axis=1).tolist(), self.given.tolist())

    def likely(self) -> list[tuple[Any, ...]]:
        """Return uid, likely label, its probability and that of the given one, head first; likely is the most probable
        class other than the given one."""
        rows, others = np.arange(len(self.given)), self.probabilities.copy()
        others[rows, self.given] = -1.0
        best = others.argmax(axis=1)
        names, numbers = [self.classes[i] for i in best], (others[rows, best], self.confidence)
        found = zip(self.uids, names, *(one.round(6).tolist() for one in numbers), strict=True)
        return [("uid", "likely_label", "likely", "confidence"), *sorted(found)]

    def thresholds(self) -> Float[np.ndarray, " classes"]:
        """Return the mean self-confidence of the samples given each class; infinity where there is none."""
        own = self.confidence
        means = [own[self.given == k].mean() if (self.given == k).any() else np.inf for k in range(len(self.classes))]
        return np.array(means)

    def confident(self) -> Bool[np.ndarray, " n"]:
        """Tell which samples' own labels reach their threshold: of every class given, at least one."""
        return self.confidence >= self.thresholds()[self.given] - 1e-12  # a mean of equals may exceed them by rounding

    def wrong(self) -> int:
        """Estimate how many labels are wrong.

        >>> sure = np.array([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.2, 0.8]])
        >>> Judged(range(4), "ab", np.array([0, 0, 0, 1]), sure).wrong()
        1
        """
        sure = np.where(self.probabilities >= self.thresholds() - 1e-12, self.probabilities, -1.0)
        return int(((sure.max(axis=1) >= 0) & (sure.argmax(axis=1) != self.given)).sum())

    def estimate(self) -> dict[str, Any]:
        """Return accuracy, share of the most frequent label, the test's p-value and, where that is below `LEVEL`, the
        estimated number of wrong labels."""
        found, count = self.accuracy(), len(self.given)
        p = float(stats.binom.sf(round(found["accuracy"] * count) - 1, count, found["majority"]))
        return {**found, "p": p, "wrong": self.wrong() if p < LEVEL else None}
