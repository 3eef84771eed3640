"""One value per sample from its scores for several targets; lowest = most helpful, as the scores are."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import rankdata


def combine_targets(scores: Float[np.ndarray, "targets n"], how: str = "rank") -> Float[np.ndarray, " n"]:
    """Return one value per sample, NaN where one of its scores is not finite.

    Args:
        scores: influences on each target.
        how: "rank" counts a sample by the target that ranks it best, so that every target chooses an equal part,
            whatever the scale of its gradients (LESS, arXiv 2402.04333, takes the best of its subtasks likewise).
            Equal scores share the best of their ranks.
            "mean" averages: influence is linear in the target, so this is the influence on the mean of the targets'
            losses, in which a target with large losses outweighs the others.

    Raises:
        ValueError: there is no such way.

    >>> combine_targets(np.array([[1.0, 4.0, 2.0], [30.0, 0.0, 20.0]])).tolist()
    [1.0, 1.0, 2.0]
    >>> combine_targets(np.array([[1.0, 4.0], [3.0, 0.0]]), how="mean").tolist()
    [2.0, 2.0]
    """
    if how not in ("rank", "mean"):
        raise ValueError(f"combine must be rank or mean, got {how!r}")
    known = np.where(np.isfinite(scores), scores, np.nan)
    return known.mean(axis=0) if how == "mean" else target_ranks(known).min(axis=0)


def target_ranks(scores: Float[np.ndarray, "targets n"]) -> Float[np.ndarray, "targets n"]:
    """Return each sample's rank for each target, 1 the most helpful; NaN for a sample with a score that is NaN."""
    return rankdata(scores, method="min", axis=1, nan_policy="omit").astype(float)


def places(values: Float[np.ndarray, " n"], uids: Int[np.ndarray, " k"]) -> tuple[list[int], int]:
    """Return the places of some samples among all with a finite value, the lowest first, and how many those are.

    >>> places(np.array([0.3, np.nan, 0.1, 0.2]), np.array([3, 0]))
    ([2, 3], 3)
    """
    finite = np.isfinite(values)
    order = np.argsort(np.where(finite, values, np.inf), kind="stable")
    place = np.empty(len(values), np.int64)
    place[order] = np.arange(1, len(values) + 1)
    return place[uids].tolist(), int(finite.sum())
