"""The parts of a pool that LDS, deciles and groups retrain on, and each scorer's figure from the measured losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from vlmsel.studies.intervals import summary
from vlmsel.studies.known import Known, choosing_half
from vlmsel.studies.leave_out import GROUPS, TENTHS, equal_samples, halves, lds, ranked_parts, spearman
from vlmsel.studies.retraining import Plan

AGAIN = "retrained again"  # how far the measured losses of other seeds predict them: no scorer can be expected above it
Losses = Mapping[str, Sequence[float]]  # of every target sample, by arm
Rows = dict[str, dict[str, Any]]  # value, low and high by scorer


@dataclass(frozen=True)
class Parts(ABC):
    """Which parts; `size` is how many samples a training has."""

    measure: ClassVar[str]
    known: Known
    scorers: Sequence[str]

    @property
    @abstractmethod
    def size(self) -> int:
        """Return how many samples a training has."""

    @abstractmethod
    def plan(self, seed: int) -> Plan:
        """Return the uids that are trained on, by arm."""

    @abstractmethod
    def conclude(self, answers: Sequence[Losses]) -> Rows:
        """Return each scorer's figure with its 95 % interval, from the seeds' answers."""


@dataclass(frozen=True)
class Halves(Parts):
    """Random halves, which all scorers share; a seed is another training on the same ones."""

    measure: ClassVar[str] = "LDS"
    subsets: int

    @property
    def size(self) -> int:
        return len(self.known.uids) // 2

    def plan(self, seed: int) -> Plan:
        drawn = halves(len(self.known.uids), self.subsets)
        return {f"half {number + 1}": self.known.uids[row > 0].tolist() for number, row in enumerate(drawn)}

    def conclude(self, answers: Sequence[Losses]) -> Rows:
        drawn = halves(len(self.known.uids), self.subsets)
        measured = -np.array([list(seed.values()) for seed in answers])  # [seeds, subsets, targets]
        rows: Rows = {one: lds(self.known.sums(one, drawn), measured.mean(axis=0)) for one in self.scorers}
        if len(measured) > 1:
            cut = len(measured) // 2
            rows[AGAIN] = lds(measured[:cut].mean(axis=0), measured[cut:].mean(axis=0))
        return rows


@dataclass(frozen=True)
class Deciles(Parts):
    """Equal samples from each tenth of a ranking by half of every target file; the other halves judge."""

    measure: ClassVar[str] = "Spearman of tenth and held-out loss"
    count: int

    @property
    def size(self) -> int:
        return self.count

    def plan(self, seed: int) -> Plan:
        choosing = choosing_half(self.known.found.targets, seed)
        found = {}
        for scorer in self.scorers:
            tenths = ranked_parts(self.known.by_file(scorer, choosing), TENTHS)
            for number, part in enumerate(equal_samples(tenths, self.count, seed), 1):
                found[f"{scorer}, tenth {number}"] = self.known.uids[part].tolist()
        return found

    def conclude(self, answers: Sequence[Losses]) -> Rows:
        return {one: _over_seeds([self._of(one, seed, losses) for seed, losses in enumerate(answers)])
                for one in self.scorers}  # fmt: skip

    def _of(self, scorer: str, seed: int, losses: Losses) -> float:
        targets = self.known.found.targets
        judging = sorted(set(range(len(targets))) - set(choosing_half(targets, seed)))
        tenths = range(1, TENTHS + 1)
        means = [self.known.mean(losses[f"{scorer}, tenth {number}"], judging) for number in tenths]
        return _rank_correlation(list(tenths), means)


@dataclass(frozen=True)
class Groups(Parts):
    """All of the pool but one fifth of a ranking by all target samples."""

    measure: ClassVar[str] = "Spearman of group's score and loss without it"

    @property
    def size(self) -> int:
        return len(self.known.uids) - len(self.known.uids) // GROUPS

    def plan(self, seed: int) -> Plan:
        found = {}
        for scorer in self.scorers:
            for number, part in enumerate(self._groups(scorer), 1):
                found[f"{scorer}, without group {number}"] = np.delete(self.known.uids, part).tolist()
        return found

    def conclude(self, answers: Sequence[Losses]) -> Rows:
        return {one: _over_seeds([self._of(one, losses) for losses in answers]) for one in self.scorers}

    def _of(self, scorer: str, losses: Losses) -> float:
        affinity = self.known.by_file(scorer).mean(axis=0)
        scores = [float(affinity[part].mean()) for part in self._groups(scorer)]
        names = [f"{scorer}, without group {number}" for number in range(1, GROUPS + 1)]
        return _rank_correlation(scores, [self.known.mean(losses[name]) for name in names])

    def _groups(self, scorer: str) -> list[np.ndarray]:
        return ranked_parts(self.known.by_file(scorer), GROUPS)


def _rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    return float(spearman(np.array(one)[:, None], np.array(other)[:, None])[0])


def _over_seeds(values: list[float]) -> dict[str, Any]:
    """Return the mean of correlations and its 95 % interval, within -1 and 1.

    >>> _over_seeds([0.9, 0.1])["high"]
    1.0
    """
    mean, half = summary(values)
    assert mean is not None
    ends = (
        {"low": None, "high": None} if half is None else {"low": max(-1.0, mean - half), "high": min(1.0, mean + half)}
    )
    return {"value": mean, **ends, "per_seed": values}
