"""What a score of a pool writes, and whether its disk has room for it: told before the passes, not hours later."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vlmsel import processes, runs
from vlmsel.scorers import Scorer
from vlmsel.scorers.base import gradient_scorers
from vlmsel.scoring.curvature import FitSources, Targets
from vlmsel.scoring.memory_plan import gathered_bytes, known_blocks
from vlmsel.scoring.source import GradientSource


def written(pool: GradientSource, fit: FitSources, targets: Targets, scorers: Sequence[Scorer]) -> int:
    """Return the most bytes that a run has on its disk at a time, in float32.

    In the curvature pass every process keeps the newest state of what it gathers, beside the one before it. Then there
    are the directions of every column, the scorers' own norms, and every score twice, in a part of the pass and in the
    table or `affinity.safetensors`, with 64 bytes more for each sample.
    """
    own, shapes = gradient_scorers(scorers), pool.shapes()
    each = 0 if targets.each is None else min(targets.each.columns, len(targets.each.samples()))
    columns = len(targets.names) + each
    states = 2 * processes.count() * gathered_bytes(own, shapes, columns, sum(fit.curvature.sizes))
    known = known_blocks(shapes, columns).values()
    norms = sum(scorer.metric_bytes(block) for scorer in own for block in known) if each else 0
    directions = 4 * len(own) * columns * sum(rows * cols for rows, cols in shapes.values())
    return max(states, norms + directions + sum(pool.sizes) * (8 * len(own) * columns + 64))


def require(pool: GradientSource, fit: FitSources, targets: Targets, scorers: Sequence[Scorer], out: Path) -> None:
    """Refuse a run whose disk has no room for what is not yet there.

    Raises:
        ValueError: with both numbers.
    """
    mend = "make room, or take fewer --columns, scorers, targets or blocks"
    needs = written(pool, fit, targets, scorers) - runs.bytes_in(out)
    runs.require_room(out, needs, "what score writes", mend)
