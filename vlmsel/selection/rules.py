"""Which samples are chosen within a budget.

Scores are the influence I of the HyperINF paper: lowest = most helpful. Ties go to the smaller uid, so a choice is
reproducible. Samples without a finite score cannot be chosen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int, Shaped


def top(
    uids: Int[np.ndarray, " n"],
    scores: Float[np.ndarray, " n"],
    k: int,
    sources: Shaped[np.ndarray, " n"] | None = None,
    quota: Mapping[str, float] | None = None,
) -> Int[np.ndarray, " k"]:
    """Return the uids of the `k` lowest scores, most helpful first.

    Args:
        uids: which samples the scores are of.
        scores: one per sample, lowest = most helpful.
        k: how many to choose.
        sources: where each sample comes from; only used with `quota`.
        quota: greatest share of `k` that a source may take, in [0, 1]; sources not named are unlimited.

    Raises:
        ValueError: fewer than `k` samples can be chosen, or a quota names a source that does not occur.

    >>> top(np.arange(4), np.array([0.5, -1.0, float("nan"), -3.0]), k=2).tolist()
    [3, 1]
    >>> top(np.arange(3), np.array([-3.0, -2.0, -1.0]), 2, np.array(["a", "a", "b"]), {"a": 0.5}).tolist()
    [0, 2]
    """
    ranked = np.lexsort((uids, scores))
    ranked = ranked[np.isfinite(scores[ranked])]
    if quota:
        assert sources is not None
        ranked = _within(ranked, sources, _places(quota, sources, k))
    if len(ranked) < k:
        limits = f" within the quota {dict(quota)}" if quota else ""
        raise ValueError(
            f"{k} samples were asked for, only {len(ranked)} with a finite score can be chosen{limits}; ask for fewer"
        )
    return uids[ranked[:k]]


def _places(quota: Mapping[str, float], sources: np.ndarray, k: int) -> dict[str, int]:
    """Return how many samples of each source there is a place for."""
    present = set(sources.tolist()) - {""}
    if unknown := sorted(set(quota) - present):
        known = ", ".join(sorted(present))[:200]
        raise ValueError(f"quota names the source {unknown[0]!r}, which the pool does not have (it has {known})")
    for source, share in quota.items():
        if not 0 <= share <= 1:
            raise ValueError(f"the quota of {source!r} must lie in [0, 1], got {share}")
    return {source: math.floor(share * k + 1e-9) for source, share in quota.items()}


def _within(ranked: np.ndarray, sources: np.ndarray, places: Mapping[str, int]) -> np.ndarray:
    """Take out of the ranked rows those of a source for which there is no place any more."""
    over = [np.flatnonzero(sources[ranked] == source)[count:] for source, count in places.items()]
    return np.delete(ranked, np.concatenate(over))
