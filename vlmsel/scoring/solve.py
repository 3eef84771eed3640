"""Scorers that gather the same are served by one accumulator per block.

Several dampings of HyperINF need one matrix, several settings of LiSSA and Exact one set of gradients: a sweep gathers
once, in one place. Solving uses up what was gathered, so that all but the first solve a copy, a few blocks at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any

from torch import Tensor

from vlmsel.scorers.base import Accumulator, Scorer
from vlmsel.scorers.together import solve_together

COPIED = 2**28  # bytes of copies that are alive at a time, unless one block needs more


def leaders(scorers: Sequence[Scorer]) -> dict[str, str]:
    """Say whose accumulator serves each scorer: its own, or that of the first scorer that gathers the same.

    >>> from vlmsel.scorers import Exact, HyperINF, LiSSA, TracIn
    >>> leaders([HyperINF(), HyperINF(damping=10, name="H10"), TracIn(), LiSSA(), Exact()])
    {'HyperINF': 'HyperINF', 'H10': 'HyperINF', 'TracIn': 'TracIn', 'LiSSA': 'LiSSA', 'Exact': 'LiSSA'}
    """
    first: dict[Any, str] = {}
    return {one.name: first.setdefault(one.name if one.gathers is None else one.gathers, one.name) for one in scorers}


def followers(scorers: Sequence[Scorer]) -> list[Scorer]:
    """Return the scorers that another one's accumulators serve."""
    led = leaders(scorers)
    return [scorer for scorer in scorers if led[scorer.name] != scorer.name]


Solved = tuple[tuple[str, str], Tensor, dict[str, Any]]  # (scorer, block), h, details


def solve_all(
    scorers: Sequence[Scorer], gathered: MutableMapping[tuple[str, str], Accumulator], blocks: Sequence[str]
) -> Iterator[Solved]:
    """Solve every scorer on every block, and take out of `gathered` what that uses up.

    Args:
        scorers: all of a pass.
        gathered: the accumulators of the scorers that lead, by (scorer, block).
        blocks: names of the blocks to solve.

    Yields:
        (scorer, block), h = P v [targets, rows, cols] and the details, in no particular order.
    """
    led = leaders(scorers)
    for leader in scorers:
        if led[leader.name] != leader.name:
            continue
        for scorer in scorers:
            if led[scorer.name] == leader.name != scorer.name:
                yield from _solve_copies(scorer, {name: gathered[leader.name, name] for name in blocks})
        own = [gathered.pop((leader.name, name)) for name in blocks]
        for name, one, h in zip(blocks, own, solve_together(own), strict=True):
            yield (leader.name, name), h, one.details


def _solve_copies(scorer: Scorer, gathered: Mapping[str, Accumulator]) -> Iterator[Solved]:
    """Solve for a scorer from what another one gathered, by block, and leave that as it is."""
    for names in _parts(gathered):
        copies = []
        for name in names:
            copies.append(scorer.accumulator(gathered[name].targets))
            copies[-1].load_state(gathered[name].state())
        solved = solve_together(copies)
        for name, one, h in zip(names, copies, solved, strict=True):
            yield (scorer.name, name), h, one.details


def _parts(gathered: Mapping[str, Accumulator]) -> Iterator[list[str]]:
    """Cut the blocks so that the copies of each part take at most `COPIED` bytes."""
    part: list[str] = []
    total = 0
    for name, one in gathered.items():
        size = sum(tensor.nbytes for tensor in one.state().values())
        if part and total + size > COPIED:
            yield part
            part, total = [], 0
        part.append(name)
        total += size
    if part:
        yield part
