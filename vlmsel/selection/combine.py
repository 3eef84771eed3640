"""One value per sample from its scores for several targets; lowest = most helpful, as the scores are."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
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
    if how == "mean":
        return known.mean(axis=0)
    return rankdata(known, method="min", axis=1, nan_policy="omit").min(axis=0).astype(float)
