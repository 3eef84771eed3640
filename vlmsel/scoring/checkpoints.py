"""TracIn over several checkpoints of one training run (TracInCP, Pruthi et al. 2020, arXiv 2002.08484):

    I(i, t) = -Σ_c η_c ⟨v_t,c, g_i,c⟩,

the sum over checkpoints c of learning rate times the scores at c; with the cosine form it is LESS's sum (arXiv
2402.04333), without Adam. Lowest = most helpful. Every checkpoint is scored as any pool is, into a folder of its own,
so that a killed run goes on within the checkpoint that it had come to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from vlmsel.scorers import Scorer, TracIn
from vlmsel.scoring.batches import BatchPlan
from vlmsel.scoring.curvature import Pass, Streams
from vlmsel.scoring.pool_pass import Scored, Share, score_pool

SUFFIX = ".CP"


def first_order(scorers: Sequence[Scorer]) -> list[TracIn]:
    """Return the scorers that are summed over checkpoints: TracIn in any form.

    Raises:
        ValueError: the name of a sum is that of another scorer.
    """
    chosen = [scorer for scorer in scorers if isinstance(scorer, TracIn)]
    taken = {scorer.name for scorer in scorers} & {scorer.name + SUFFIX for scorer in chosen}
    if taken:
        raise ValueError(f"a scorer is called {min(taken)!r}, as the sum over checkpoints is; give it another name")
    return chosen


def score_checkpoint(
    job: Pass, plan: BatchPlan, streams: Streams, scorers: Sequence[TracIn], out: Path, share: Share
) -> Scored | None:
    """Score a pool with the model as it is now, as `score_pool` does."""
    out.mkdir(parents=True, exist_ok=True)
    return score_pool(job, plan, streams, scorers, out, share)


def add_checkpoints(scored: Scored, found: Sequence[Scored], rates: Sequence[float]) -> Scored:
    """Add the columns of the sums over checkpoints, `<name>.CP`, NaN for samples that lack a score at any of them.

    Args:
        scored: what the columns are added to, and whose samples they are for.
        found: the scores at each checkpoint, of the same columns.
        rates: the learning rate at each.

    Raises:
        ValueError: the numbers of checkpoints and rates differ, or the checkpoints' samples or columns do.

    >>> def at(*scores):
    ...     names = (("TracIn", "gqa"),)
    ...     return Scored(torch.tensor([4, 7]), torch.zeros(2), torch.tensor([scores]), names, {})
    >>> both = add_checkpoints(at(0.0, 0.0), [at(1.0, 2.0), at(3.0, float("nan"))], [1.0, 0.5])
    >>> both.names[1], both.scores[1].tolist()
    (('TracIn.CP', 'gqa'), [2.5, nan])
    """
    if not found or len(found) != len(rates):
        raise ValueError(f"expected a learning rate for each checkpoint, got {len(rates)} for {len(found)} checkpoints")
    names = found[0].names
    if any(one.names != names for one in found):
        raise ValueError(f"the checkpoints' columns differ; the first has {', '.join('/'.join(n) for n in names)}")
    total = sum(rate * _of_samples(one, scored.uids) for rate, one in zip(rates, found, strict=True))
    summed = torch.as_tensor(total)
    dtype = torch.promote_types(scored.scores.dtype, summed.dtype)
    added = tuple((name + SUFFIX, target) for name, target in names)
    about = {name + SUFFIX: {"learning_rates": list(rates)} for name, _ in names}
    scores = torch.cat([scored.scores.to(dtype), summed.to(dtype)])
    return replace(scored, scores=scores, names=(*scored.names, *added), details={**scored.details, **about})


def _of_samples(scored: Scored, uids: Tensor) -> Tensor:
    """Return the scores of samples in the order of `uids`. [columns, n]"""
    rows = {uid: row for row, uid in enumerate(scored.uids.tolist())}
    missing = [uid for uid in uids.tolist() if uid not in rows]
    if missing or len(rows) != len(uids):
        first = f"{len(missing)} are missing, the first: {missing[0]}" if missing else "some are new"
        raise ValueError(f"a checkpoint has scores of {len(rows)} samples, the pool of {len(uids)}; {first}")
    return scored.scores[:, [rows[uid] for uid in uids.tolist()]]
