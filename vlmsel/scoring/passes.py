"""Two streamed passes over a pool serve every scorer and every target.

1. `target_gradients`: one plain batched backward per target gives v_t, the mean gradient of its samples.
2. `curvature_pass`: one pass over the fit samples feeds the accumulators of all scorers from the same factors; solving
   them gives the preconditioned targets h = P v_t.
3. `score_batch`: I(i, t) = -sum over blocks of <h_t, g_i>, for all scorers and targets from one backward.

Nothing per-sample is kept but scores. Lowest = most helpful. A sample whose loss or gradient is not finite is left out
of every sum and reported; the other samples' numbers do not change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vlmsel.gradients import Block, Factor, capture
from vlmsel.scorers import Scorer

Factors = dict[str, Factor]


class Objective(NamedTuple):
    """What is differentiated: each sample's own loss, and which sample the rows of a module belong to where they
    differ."""

    losses: Callable[[nn.Module, Any], Tensor]  # (model, batch) -> [n]
    rows: Callable[[nn.Module, Any], Mapping[str, Tensor]]  # (model, batch) -> module name -> sample of each row


@dataclass
class Bad:
    """Samples left out because their loss or gradient was not finite: uid -> reason."""

    reasons: dict[int, str] = field(default_factory=dict)

    def add(self, uids: Tensor, reason: str) -> None:
        self.reasons.update({int(uid): reason for uid in uids})


def batch_factors(
    model: nn.Module, batch: Any, objective: Objective, blocks: Sequence[Block]
) -> tuple[Tensor, Factors]:
    """Run one backward and return each sample's loss [n] and the factors of its gradient at every block.

    Losses that are not finite take no part in the backward.
    """
    with capture(model, blocks, len(batch.uids), objective.rows(model, batch)) as captured:
        losses = objective.losses(model, batch)
        finite = torch.isfinite(losses)
        if finite.any():
            torch.where(finite, losses, torch.zeros_like(losses)).sum().backward()
    return losses.detach(), captured.factors()


def finite_samples(losses: Tensor, factors: Factors) -> Tensor:
    """Return [n] true where the loss and every block's gradient are finite."""
    keep = torch.isfinite(losses)
    for factor in factors.values():
        keep = keep & factor.finite().to(keep.device)
    return keep


def _report(bad: Bad, uids: Tensor, losses: Tensor, keep: Tensor) -> None:
    lost = torch.isfinite(losses) & ~keep
    bad.add(uids[(~torch.isfinite(losses)).cpu()], "the loss is not finite")
    bad.add(uids[lost.cpu()], "the gradient is not finite")


def clean_factors(model: nn.Module, batch: Any, objective: Objective, blocks: Sequence[Block], bad: Bad) -> Factors:
    """Return the batch's factors without the samples that are not finite, which are reported in `bad`."""
    losses, factors = batch_factors(model, batch, objective, blocks)
    keep = finite_samples(losses, factors)
    if bool(keep.all()):
        return factors
    _report(bad, batch.uids, losses, keep)
    return {name: factor.select(keep) for name, factor in factors.items()}


def target_gradients(
    model: nn.Module, batches: Iterable[Any], objective: Objective, blocks: Sequence[Block]
) -> tuple[dict[str, Tensor], int]:
    """Return the mean gradient over a target's samples, `[rows, cols]` per block in float32 or better, and their
    number.

    Raises:
        ValueError: a sample's loss or gradient is not finite (a target must be clean, for it enters every score), or
            there are no samples.
    """
    sums: dict[str, Tensor] = {}
    count = 0
    for batch in batches:
        losses, factors = batch_factors(model, batch, objective, blocks)
        keep = finite_samples(losses, factors)
        if not bool(keep.all()):
            row = int((~keep).nonzero()[0, 0])
            what = "gradient" if bool(torch.isfinite(losses[row])) else "loss"
            raise ValueError(
                f"the {what} of sample {int(batch.uids[row])} is not finite; remove it from the target file"
            )
        for name, factor in factors.items():
            total = factor.weighted_sum(torch.ones(1, factor.samples, device=losses.device))[0]
            sums[name] = sums[name] + total if name in sums else total
        count += len(losses)
    if not count:
        raise ValueError("a target set without usable samples has no gradient; give at least one sample")
    return {name: total / count for name, total in sums.items()}, count


def mean_squares(
    model: nn.Module, batches: Iterable[Any], objective: Objective, blocks: Sequence[Block], bad: Bad
) -> dict[str, float]:
    """Return, per block, the mean of the squared gradient entries over samples: what damping is relative to."""
    sums = {block.name: 0.0 for block in blocks}
    count = 0
    for batch in batches:
        factors = clean_factors(model, batch, objective, blocks, bad)
        for name, factor in factors.items():
            sums[name] += float(factor.sq_norm().double().sum())
        count += next(iter(factors.values())).samples
    if not count:
        raise ValueError("no sample with a finite gradient to measure the damping on")
    return {block.name: sums[block.name] / (count * block.rows * block.cols) for block in blocks}


def curvature_pass(
    model: nn.Module,
    batches: Iterable[Any],
    objective: Objective,
    accumulators: Mapping[tuple[str, str], Any],
    blocks: Sequence[Block],
    bad: Bad,
) -> None:
    """Feed the accumulators, keyed by (scorer name, block name), with the factors of the fit samples."""
    for batch in batches:
        factors = clean_factors(model, batch, objective, blocks, bad)
        for (_, block), accumulator in accumulators.items():
            accumulator.update(factors[block])


def score_batch(
    model: nn.Module, batch: Any, objective: Objective, blocks: Sequence[Block], directions: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Score one batch against all preconditioned targets at once.

    Args:
        directions: per block the stacked h of all scorers and targets, `[columns, rows, cols]`.

    Returns:
        Influence `[columns, n]` (lowest = most helpful) and loss `[n]`; both NaN where the sample is not finite.
    """
    losses, factors = batch_factors(model, batch, objective, blocks)
    inner = sum(factor.inner(directions[name]) for name, factor in factors.items())
    scores = -torch.as_tensor(inner)
    keep = torch.isfinite(losses) & torch.isfinite(scores).all(0)
    nan = torch.full((), float("nan"), device=scores.device)
    return torch.where(keep, scores, nan), torch.where(torch.isfinite(losses), losses.float(), nan)


def gradient_scorers(scorers: Sequence[Scorer]) -> list[Scorer]:
    """Return the scorers that need gradients (all but Random and its like)."""
    return [scorer for scorer in scorers if scorer.uses_gradients]
