"""Statistics of all scorers on all blocks, gathered once where they are equal, and what solves them.

Several dampings of HyperINF need one matrix, several settings of LiSSA and Exact one set of gradients: a sweep gathers
once, in one place. The last scorer to solve a statistic may use it up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from vlmsel.scorers import BlockTargets, GradientScorer, Solved, Statistic
from vlmsel.scorers.base import Metric

Key = tuple[str, Hashable]  # block, what is gathered


class Gathered(NamedTuple):
    """The statistics of a pass by block and key, and which of them each (scorer, block) is solved from; None where P
    depends on no fit sample."""

    statistics: dict[Key, Statistic]
    uses: Mapping[tuple[str, str], Key | None]


def start_statistics(scorers: Sequence[GradientScorer], blocks: Mapping[str, BlockTargets]) -> Gathered:
    """Start what the scorers need of each block.

    >>> import torch
    >>> from vlmsel.scorers import Exact, HyperINF, LiSSA, TracIn
    >>> scorers = [HyperINF(), HyperINF(damping=10, name="H10"), TracIn(), LiSSA(), Exact()]
    >>> len(start_statistics(scorers, {"w": BlockTargets(torch.zeros(1, 2, 3))}).statistics)
    2
    """
    statistics: dict[Key, Statistic] = {}
    uses: dict[tuple[str, str], Key | None] = {}
    for scorer in scorers:
        for name, block in blocks.items():
            uses[scorer.name, name] = None
            if (statistic := scorer.statistic(block)) is not None:
                key = uses[scorer.name, name] = (name, statistic.key)
                statistics.setdefault(key, statistic)
    return Gathered(statistics, uses)


def solve_all(
    scorers: Sequence[GradientScorer], gathered: Gathered, v: Mapping[str, Tensor], metrics: bool = False
) -> Iterator[tuple[str, str, Solved, Metric | None]]:
    """Solve every scorer on the blocks of `v`, and take out of `gathered` what that uses up.

    Yields:
        Scorer, block, the solution and, where `metrics` are wanted and it has one, its own norm; scorer by scorer.
    """
    left = Counter(gathered.uses[scorer.name, name] for scorer in scorers for name in v)
    for scorer in scorers:
        for name, targets in v.items():
            key = gathered.uses[scorer.name, name]
            statistic = None if key is None else gathered.statistics[key]
            norm = scorer.metric(statistic) if metrics and scorer.own_norm else None
            left[key] -= 1
            if statistic is not None and key is not None and left[key] == 0:
                statistic.spendable = True
                del gathered.statistics[key]
            solved = scorer.solve(statistic, targets)
            del statistic
            yield scorer.name, name, solved, norm


def say_instead(scorer: str, details: Mapping[str, Mapping[str, Any]]) -> None:
    """Say where blocks were solved in another way than the scorer's settings say, by what it recorded as "instead"."""
    others = {name: numbers["instead"] for name, numbers in details.items() if "instead" in numbers}
    if others:
        first, how = next(iter(others.items()))
        print(f"{scorer}: {len(others)} of {len(details)} blocks were solved in a safer way, the first {first} {how}")
