"""Choices that need no target: at random, by loss, by length; also with given shares of the sources.

What a choice by scores is worth is seen beside a random one, and beside one with the same number of samples per source
(`like`): what it gains over the second it gains within sources.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

from vlmsel import runs
from vlmsel.data.formats import read_samples
from vlmsel.selection.budget import Ask, Budget, apportion
from vlmsel.selection.combine import places
from vlmsel.selection.facts import Facts
from vlmsel.selection.rules import top

DRAWN = ("Random", "Loss", "Length")


@dataclass(frozen=True)
class Draw:
    """How Random, Loss and Length choose.

    Attributes:
        seed: draws a random choice; a smaller one of the same seed is a part of it.
        stratified: every source has the same share of the choice as of the pool.
        like: a file that `select` wrote, or its manifest: every source has as many samples as there, or, of another
            amount that is asked for, the same share.
        lowest: choose the lowest losses, or the shortest samples, instead of the highest and longest.
    """

    flat: ClassVar[bool] = True
    seed: int = 0
    stratified: bool = False
    like: str | None = None
    lowest: bool = False

    def choose(self, scorer: str, facts: Facts, ask: Ask, pool_sha256: str) -> Int[np.ndarray, " k"]:
        """Return the uids that are chosen, first ones first.

        Raises:
            ValueError: the table does not say what is needed, settings contradict each other, or the samples that can
                be used do not use up the budget.
        """
        values = self._values(scorer, facts)
        if self.like is not None and not ask.given():
            ask = replace(ask, count=sum(_sources_of(_manifest(self.like), self.like).values()))
        budget = ask.budget(facts)
        if self.like is not None or self.stratified:
            budget = self._limited(budget, facts, pool_sha256, np.isfinite(values))
        return top(values, budget)

    def reasons(self, scorer: str, facts: Facts, uids: Int[np.ndarray, " k"]) -> dict[str, Any]:
        """Say of each chosen sample its loss, length or drawn number, its place among all, and why it was chosen."""
        values = self._values(scorer, facts)
        ranks, count = places(values, uids)
        way = f"by {scorer}, {'lowest' if self.lowest else 'highest'} first"
        by = f"drawn at random, seed {self.seed}" if scorer == "Random" else way
        reasons = [f"{rank} of {count}, {by}" for rank in ranks]
        return {"score": np.abs(values[uids]).tolist(), "rank": ranks, "reason": reasons}

    def _values(self, scorer: str, facts: Facts) -> Float[np.ndarray, " n"]:
        """Return one number per sample, of which the lowest are chosen."""
        if scorer == "Random":
            if self.lowest:
                raise ValueError("--lowest has no meaning for a random choice; leave it out")
            drawn = np.random.default_rng([*b"select", self.seed]).random(len(facts))  # a stream of its own
            return np.where(facts.usable, drawn, np.nan)
        values = facts.values("loss" if scorer == "Loss" else "length")
        return values if self.lowest else -values

    def _limited(self, budget: Budget, facts: Facts, pool_sha256: str, usable: np.ndarray) -> Budget:
        """Give every source its part of the budget."""
        if self.like is not None and self.stratified:
            raise ValueError("give --stratified or --like, not both")
        there = budget.per_group(usable)
        if self.like is None:
            parts, within = apportion(budget.total, there.astype(float), there), " with the sources' shares of the pool"
            return replace(budget, limits=np.minimum(parts, budget.limits), within=within)
        manifest = _manifest(self.like)
        names = np.unique(facts.sources).tolist()
        shares = np.zeros(len(names))
        if budget.unit == "tokens":
            if manifest is None or manifest["pool_sha256"] != pool_sha256:
                raise ValueError(f"{self.like}: its tokens per source are known of choices from the same pool only")
            shares = budget.per_group(np.array(manifest["uids"])).astype(float)
        else:
            for name, count in _sources_of(manifest, self.like).items():
                if name not in names:
                    raise ValueError(f"{self.like}: has samples of the source {name!r}, which the pool does not have")
                shares[names.index(name)] = count
        parts = apportion(budget.total, shares, np.full(len(names), budget.total))
        return replace(
            budget, limits=np.minimum(parts, budget.limits), within=f" with the sources' shares of {self.like}"
        )


def _manifest(path: str) -> Mapping[str, Any] | None:
    """Return the manifest that a path names, or that lies beside it; None where there is none."""
    for file in (Path(f"{path}.manifest.json"), Path(path)):
        if file.is_file() and file.name.endswith(".manifest.json"):
            return runs.read_json(file)
    return None


def _sources_of(manifest: Mapping[str, Any] | None, path: str) -> Mapping[str, int]:
    """Return how many samples of each source a choice has."""
    if manifest is not None:
        return manifest["sources"]
    return Counter(read_samples(path).samples.sources)
