"""Choose the k samples of lowest influence, with an optional quota per source.

Scores are the influence I of the HyperINF paper: lowest = most helpful. Ties go to the smaller uid, so a choice is
reproducible. Samples without a finite score cannot be chosen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence


def combine(columns: Sequence[Sequence[float]]) -> list[float]:
    """Return each sample's mean score over several targets.

    Influence is linear in the target, so the mean over targets is the influence on the equally weighted mean of the
    targets' losses.

    >>> combine([[1.0, 4.0], [3.0, 0.0]])
    [2.0, 2.0]
    """
    return [sum(values) / len(values) for values in zip(*columns, strict=True)]


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
