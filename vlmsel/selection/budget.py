"""How much is chosen: a fraction of the pool, a count, or so many tokens; and what each source may have of it.

A budget is spent sample by sample. What does not fit into what is left, or into what its source has left, is passed
over, and the rule goes on until nothing fits: the fair unit is the tokens that a choice teaches, as ones with large
gradients are short.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int

from vlmsel.selection.facts import Facts


@dataclass(frozen=True)
class Budget:
    """What may be spent, and what samples cost.

    Attributes:
        total: samples or tokens.
        costs: of each sample: 1, or its tokens.
        groups: number of each sample's source.
        limits: most that may be spent on each source.
        unit: samples or tokens.
        within: how the limits came about, in words.
    """

    total: int
    costs: Int[np.ndarray, " n"]
    groups: Int[np.ndarray, " n"]
    limits: Int[np.ndarray, " g"]
    unit: str = "samples"
    within: str = ""

    def at(self, rows: Int[np.ndarray, " k"]) -> Budget:
        """Return the same budget for some of the samples."""
        return Budget(self.total, self.costs[rows], self.groups[rows], self.limits, self.unit, self.within)

    def per_group(self, rows: Int[np.ndarray, " k"] | Bool[np.ndarray, " n"]) -> Int[np.ndarray, " g"]:
        """Return what some samples cost, by source."""
        spent = np.bincount(self.groups[rows], weights=self.costs[rows], minlength=len(self.limits))
        return spent.astype(np.int64)

    def most(self, allowed: Bool[np.ndarray, " n"]) -> int:
        """Return the greatest number of samples that can be paid for."""
        return int(np.searchsorted(np.cumsum(np.sort(self.costs[allowed])), self.total, side="right"))

    def check(self, allowed: Bool[np.ndarray, " n"]) -> None:
        """Refuse a budget that the allowed samples cannot use up.

        Raises:
            ValueError: there are too few samples, or the shortest is longer than the budget.
        """
        possible = int(np.minimum(self.per_group(allowed), self.limits).sum())
        if possible < self.total:
            what = "with a finite score" if self.unit == "samples" else "of samples with a finite score"
            raise ValueError(
                f"{self.total} {self.unit} were asked for, only {possible} {what} can be chosen{self.within}; ask for "
                "fewer"
            )
        if self.total < (shortest := int(self.costs[allowed].min())):
            raise ValueError(f"a budget of {self.total} tokens is less than the shortest sample, which has {shortest}")


class Purse:
    """A budget while it is spent.

    Attributes:
        chosen: the rows that were taken, in order.
        gone: 1 for each row that is taken, not allowed, or for which there is not enough left.
    """

    def __init__(self, budget: Budget, allowed: Bool[np.ndarray, " n"]) -> None:
        budget.check(allowed)
        self.chosen: list[int] = []
        self.gone = bytearray((~allowed).tobytes())
        self._budget, self._left, self._room = budget, budget.total, budget.limits.tolist()
        self._costs, self._groups = (np.ascontiguousarray(a).data for a in (budget.costs, budget.groups))

    def take(self, row: int) -> bool:
        """Take a row that is not gone, if there is enough left for it; it is gone then in any case."""
        cost, group = self._costs[row], self._groups[row]
        self.gone[row] = 1
        if cost > self._left or cost > self._room[group]:
            return False
        self._left -= cost
        self._room[group] -= cost
        self.chosen.append(row)
        return True

    def spent(self) -> bool:
        """Tell whether nothing is left."""
        return self._left == 0

    def affordable(self) -> Bool[np.ndarray, " n"]:
        """Return which rows could be taken now."""
        there = np.frombuffer(self.gone, dtype=bool)
        room = np.minimum(self._left, np.array(self._room))[self._budget.groups]
        return ~there & (self._budget.costs <= room)

    def expected(self) -> int:
        """Return about how many more samples will be taken."""
        return max(1, math.ceil(self._left / max(1e-9, float(self._budget.costs.mean()))))

    def rows(self) -> Int[np.ndarray, " k"]:
        """Return the rows that were taken.

        Raises:
            ValueError: there is none, as no source had room for one of its samples.
        """
        if not self.chosen:
            raise ValueError(f"{self._budget.total} {self._budget.unit}: no sample fits{self._budget.within}")
        return np.array(self.chosen, dtype=np.int64)


@dataclass(frozen=True)
class Ask:
    """How much to choose: one of the first three.

    Attributes:
        fraction: part of the pool to choose, in (0, 1].
        count: how many samples to choose.
        tokens: how many tokens to choose: supervised ones where the score table has them, else whole samples'.
        quota: greatest share of the choice per source, such as `--quota.text 0.1`.
    """

    flat: ClassVar[bool] = True
    fraction: float | None = None
    count: int | None = None
    tokens: int | None = None
    quota: dict[str, float] | None = None

    def given(self) -> bool:
        """Tell whether any amount is asked for."""
        return (self.fraction, self.count, self.tokens) != (None, None, None)

    def check(self, total: int = sys.maxsize, sources: Sequence[str] | None = None) -> None:
        """Refuse an amount that no pool of `total` records from these sources could give.

        Raises:
            ValueError: not exactly one amount is given, it is out of range, or a quota is none or of no such source.
        """
        if not self.given():
            raise ValueError("say how much to choose: --fraction, --count or --tokens")
        how_many(total, self.fraction, self.count, self.tokens)
        if sources is not None:
            _places(self.quota or {}, list(sources), total)

    def budget(self, facts: Facts) -> Budget:
        """Return the budget for a pool.

        Raises:
            ValueError: not exactly one amount is given, one is out of range, or a quota names a source that does not
                occur; tokens where no score table says how long samples are.
        """
        names, groups = np.unique(facts.sources, return_inverse=True)
        costs = np.ones(len(facts), dtype=np.int64)
        if self.tokens is None:
            total = how_many(len(facts), self.fraction, self.count)
        else:
            how_many(len(facts), self.fraction, self.count, self.tokens)
            total, costs = self.tokens, facts.lengths()
        limits = np.full(len(names), total)
        for source, places in _places(self.quota or {}, names.tolist(), total).items():
            limits[names.tolist().index(source)] = places
        unit = "samples" if self.tokens is None else "tokens"
        within = f" within the quota {dict(self.quota)}" if self.quota else ""
        return Budget(total, costs, groups.astype(np.int64), limits, unit, within)


def how_many(total: int, fraction: float | None, count: int | None, tokens: int | None = None) -> int:
    """Return how many of `total` samples are asked for; 0 where it is tokens.

    Raises:
        ValueError: not exactly one of the three is given, or it is out of range.

    >>> how_many(50, 0.25, None), how_many(50, None, 7)
    (12, 7)
    """
    if sum(one is not None for one in (fraction, count, tokens)) != 1:
        raise ValueError(f"give one of fraction, count and tokens, got fraction={fraction}, {count=}, {tokens=}")
    if fraction is not None:
        if not 0 < fraction <= 1:
            mend = f" ({fraction:g} % is {fraction / 100:g})" if fraction > 1 else ""
            raise ValueError(f"fraction must lie in (0, 1], got {fraction}{mend}")
        return max(1, round(fraction * total))
    if tokens is not None:
        if tokens < 1:
            raise ValueError(f"tokens must be at least 1, got {tokens}")
        return 0
    assert count is not None
    if not 0 < count <= total:
        raise ValueError(f"count must lie between 1 and the pool's {total} samples, got {count}")
    return count


def apportion(total: int, shares: Float[np.ndarray, " g"], room: Int[np.ndarray, " g"]) -> Int[np.ndarray, " g"]:
    """Divide a total by shares into whole numbers, by largest remainders and none above its room; what one has no room
    for goes to the others in proportion, as far as there is room.

    >>> apportion(10, np.array([0.5, 0.3, 0.2]), np.array([9, 9, 1])).tolist()
    [6, 3, 1]
    """
    parts, free = np.zeros(len(shares), dtype=np.int64), (shares > 0) & (room > 0)
    while free.any():
        exact = shares * (total - parts.sum()) / shares[free].sum()
        full = free & (exact >= room)
        if not full.any():
            parts[free] = np.floor(exact[free])
            rest = np.where(free, parts - exact, np.inf)  # the greater a remainder, the lower
            parts[np.argsort(rest, kind="stable")[: total - parts.sum()]] += 1
            break
        parts[full], free = room[full], free & ~full
    return parts


def _places(quota: Mapping[str, float], sources: list[str], total: int) -> dict[str, int]:
    """Return how much of the total each source may have."""
    present = sorted(set(sources) - {""})
    if unknown := sorted(set(quota) - set(present)):
        known = ", ".join(present)
        raise ValueError(f"quota names the source {unknown[0]!r}, which the pool does not have (it has {known})")
    for source, share in quota.items():
        if not 0 <= share <= 1:
            raise ValueError(f"the quota of {source!r} must lie in [0, 1], got {share}")
    return {source: math.floor(share * total + 1e-9) for source, share in quota.items()}
