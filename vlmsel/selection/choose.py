"""Choose the k samples of lowest influence, with an optional quota per source.

Scores are the influence I of the HyperINF paper: lowest = most helpful. Ties go to the smaller uid, so a choice is
reproducible. Samples without a finite score cannot be chosen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence


def combine(columns: Sequence[Sequence[float]], how: str = "rank") -> list[float]:
    """Return one value per sample from its scores for several targets, lowest = most helpful; NaN where one is missing.

    Args:
        columns: one list of scores per target.
        how: "rank" counts a sample by the target that ranks it best, so that every target chooses an equal part,
            whatever the scale of its gradients (LESS, arXiv 2402.04333, takes the best of its subtasks likewise).
            "mean" averages: influence is linear in the target, so this is the influence on the mean of the targets'
            losses, in which a target with large losses outweighs the others.

    Raises:
        ValueError: there is no such way.

    >>> combine([[1.0, 4.0, 2.0], [30.0, 0.0, 20.0]])
    [1.0, 1.0, 2.0]
    >>> combine([[1.0, 4.0], [3.0, 0.0]], how="mean")
    [2.0, 2.0]
    """
    if how not in ("rank", "mean"):
        raise ValueError(f"combine must be rank or mean, got {how!r}")
    ranked = [_ranks(column) for column in columns] if how == "rank" else columns
    together = min if how == "rank" else _mean
    return [together(values) if all(map(math.isfinite, values)) else math.nan for values in zip(*ranked, strict=True)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _ranks(scores: Sequence[float]) -> list[float]:
    """Return each score's rank, 1 for the lowest; equal scores share the best of their ranks."""
    first: dict[float, int] = {}
    for rank, score in enumerate(sorted(filter(math.isfinite, scores)), start=1):
        first.setdefault(score, rank)
    return [float(first[score]) if math.isfinite(score) else math.nan for score in scores]


def wanted(total: int, fraction: float | None, count: int | None) -> int:
    """Return how many of `total` samples are asked for.

    Raises:
        ValueError: not exactly one of `fraction` and `count`, or one out of range.
    """
    if (fraction is None) == (count is None):
        raise ValueError(f"give either fraction or count, got fraction={fraction} and count={count}")
    if fraction is not None:
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction must lie in (0, 1], got {fraction}")
        return max(1, round(fraction * total))
    assert count is not None
    if not 0 < count <= total:
        raise ValueError(f"count must lie between 1 and the pool's {total} samples, got {count}")
    return count


def choose(
    uids: Sequence[int],
    scores: Sequence[float],
    k: int,
    sources: Sequence[str] | None = None,
    quota: Mapping[str, float] | None = None,
) -> list[int]:
    """Return the uids of the `k` lowest scores, most helpful first.

    Args:
        uids: one per sample.
        scores: influence per sample; non-finite scores are never chosen.
        k: how many to choose.
        sources: the source of each sample; needed with `quota`.
        quota: greatest share of the choice per source, in [0, 1]; sources not named are free.

    Raises:
        ValueError: fewer than `k` samples can be chosen, or a quota names a source that does not occur.

    >>> choose([0, 1, 2, 3], [0.5, -1.0, float("nan"), -3.0], k=2)
    [3, 1]
    >>> choose([0, 1, 2], [-3.0, -2.0, -1.0], k=2, sources=["a", "a", "b"], quota={"a": 0.5})
    [0, 2]
    """
    ranked = sorted(
        (score, uid, row) for row, (uid, score) in enumerate(zip(uids, scores, strict=True)) if math.isfinite(score)
    )
    room = _room(quota or {}, sources, k)
    chosen: list[int] = []
    for _, uid, row in ranked:
        source = sources[row] if sources is not None else ""
        if len(chosen) == k or room.get(source, 1) <= 0:
            continue
        chosen.append(uid)
        if source in room:
            room[source] -= 1
    if len(chosen) < k:
        limits = f" within the quota {dict(quota)}" if quota else ""
        raise ValueError(
            f"{k} samples were asked for, only {len(chosen)} with a finite score can be chosen{limits}; ask for fewer"
        )
    return chosen


def _room(quota: Mapping[str, float], sources: Sequence[str] | None, k: int) -> dict[str, int]:
    present = {source for source in sources or () if source}
    unknown = sorted(set(quota) - present)
    if unknown:
        known = ", ".join(sorted(present))
        raise ValueError(f"quota names the source {unknown[0]!r}, which the pool does not have (it has {known})")
    for source, share in quota.items():
        if not 0 <= share <= 1:
            raise ValueError(f"the quota of {source!r} must lie in [0, 1], got {share}")
    return {source: math.floor(share * k + 1e-9) for source, share in quota.items()}
