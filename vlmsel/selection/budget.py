"""How many samples are chosen: a fraction of the pool, or a count."""

from __future__ import annotations


def how_many(total: int, fraction: float | None, count: int | None) -> int:
    """Return how many of `total` samples are asked for.

    Raises:
        ValueError: not exactly one of `fraction` and `count`, or one out of range.

    >>> how_many(50, 0.25, None), how_many(50, None, 7)
    (12, 7)
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
