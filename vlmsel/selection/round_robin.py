"""Round robin: target samples take turns, and each takes its best sample that is not yet taken, by unit affinity.

No target is averaged with others, no sample ranks by its size, and near-duplicates of one target's favourite serve that
target alone. Each target's ranking is made as far as it is likely to be needed, 20 times its turns; when a target has
come to the end of it, all rankings are made again of what is left, farther each time.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from vlmsel.selection.budget import Budget, Purse
from vlmsel.selection.nearest import Features, nearest

_FIRST = 20  # samples that are ranked for each turn of a target
_MOST = 40_000_000  # that are ranked for all targets together, beyond one for each turn
_NONE = (memoryview(b""), memoryview(b""))


class Taken(NamedTuple):
    """Chosen samples, in the order in which they were taken.

    Attributes:
        rows: which they are.
        takers: the target that took each, or whose affinity to it is highest.
        values: their unit affinities to these.
    """

    rows: Int[np.ndarray, " k"]
    takers: Int[np.ndarray, " k"]
    values: Float[np.ndarray, " k"]


def round_robin(
    features: Features,
    directions: Float[np.ndarray, "t r"],
    turns: Int[np.ndarray, " turns"],
    budget: Budget,
    allowed: Bool[np.ndarray, " n"],
) -> Taken:
    """Let targets choose in turn until the budget is used.

    Args:
        features: gives the samples' unit features.
        directions: of the targets; their products with features are unit affinities.
        turns: whose turn it is, at least as often as samples can be taken.
        budget: how much to choose.
        allowed: which samples may be chosen.

    Raises:
        ValueError: the allowed samples do not use up the budget.
    """
    purse = Purse(budget, allowed)
    rankings = _Rankings(features, directions, turns, purse)
    takers, values = [], []
    for target in turns.tolist():
        value = rankings.take(target)
        if value is None:
            break
        takers.append(target)
        values.append(value)
    return Taken(purse.rows(), np.array(takers, dtype=np.int64), np.array(values, dtype=np.float32))


class _Rankings:
    """What each target would take next."""

    def __init__(self, features: Features, directions: np.ndarray, turns: np.ndarray, purse: Purse) -> None:
        self._features, self._directions, self._turns, self._purse = features, directions, turns, purse
        self._times, self._at = _FIRST, [0] * len(directions)
        self._ranked: dict[int, tuple[memoryview, memoryview]] = {}  # rows and values by target

    def take(self, target: int) -> float | None:
        """Take a target's best sample that can be taken; return its value, or None when there is no more."""
        purse, gone = self._purse, self._purse.gone
        while True:
            (rows, values), at = self._ranked.get(target, _NONE), self._at[target]
            while at < len(rows) and (gone[rows[at]] or not purse.take(rows[at])):
                at += 1
            self._at[target] = at + 1
            if at < len(rows):
                return values[at]
            if purse.spent() or not self._rank():
                return None

    def _rank(self) -> bool:
        """Rank what can still be taken; False when that is nothing."""
        allowed, done = self._purse.affordable(), len(self._purse.chosen)
        if not allowed.any():
            return False
        coming = self._turns[done : done + self._purse.expected()]
        times = min(self._times, max(1, _MOST // len(coming)))
        needed = np.bincount(coming, minlength=len(self._at)) * times
        active = np.flatnonzero(needed)
        keep = np.minimum(needed[active], allowed.sum())
        ranked = nearest(self._features, self._directions[active], allowed, keep)
        views = ((one.rows.data, one.values.data) for one in ranked)
        self._ranked = dict(zip(active.tolist(), views, strict=True))
        self._times, self._at = 2 * self._times, [0] * len(self._at)
        return True
