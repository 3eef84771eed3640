"""Two streamed passes over a pool serve every scorer and every target.

1. `targets.target_means`: one plain batched backward over all targets gives v_t, the mean gradient of each's samples.
2. `curvature_pass`: one pass over the fit samples feeds the accumulators of all scorers from the same factors; solving
   them gives the preconditioned targets h = P v_t.
3. `Scoring`: I(i, t) = -sum over blocks of <h_t, g_i>, for all scorers and targets from one backward, in which every
   factor is used as soon as it is there and dropped.

Nothing per-sample is kept but scores. Lowest = most helpful. A sample whose loss or gradient is not finite is left out
of every sum and reported; the other samples' numbers do not change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vlmsel.gradients import Block, Factor, capture
from vlmsel.gradients.capture import Capture
from vlmsel.scorers import Scorer
from vlmsel.scorers.normalise import over_norm
from vlmsel.scoring.halving import Budget, free, in_pieces, out_of_memory

Factors = dict[str, Factor]
FINE, NO_LOSS, NO_GRADIENT, NO_MEMORY = range(4)
REASONS = {
    NO_LOSS: "the loss is not finite",
    NO_GRADIENT: "the gradient is not finite",
    NO_MEMORY: "it does not fit into memory even alone",
}


class Objective(NamedTuple):
    """What is differentiated: each sample's own loss, and which sample the rows of a module belong to where they
    differ."""

    losses: Callable[[nn.Module, Any], Tensor]  # (model, batch) -> [n]
    rows: Callable[[nn.Module, Any], Mapping[str, Tensor]]  # (model, batch) -> module name -> sample of each row


@dataclass
class Bad:
    """Samples left out, and why: uid -> reason."""

    reasons: dict[int, str] = field(default_factory=dict)

    def add(self, uids: Tensor, code: int) -> None:
        """Note the samples `uids` under one of `REASONS`."""
        self.reasons.update({int(uid): REASONS[code] for uid in uids})

    def add_codes(self, uids: Tensor, codes: Tensor) -> None:
        """Note the samples whose code is not `FINE`."""
        for code in REASONS:
            self.add(uids[codes == code], code)


class Gradients(NamedTuple):
    """Some samples: uids [n], each one's loss [n], the factors of its gradient at every block, and what is known to be
    wrong with all of them."""

    uids: Tensor
    losses: Tensor
    factors: Factors
    code: int = FINE

    def codes(self) -> Tensor:
        """Tell what is wrong with each sample, one of the codes of `REASONS` or `FINE`. [n] int8 on the CPU"""
        keep = torch.isfinite(self.losses)
        codes = torch.where(keep, self.code, self.code or NO_LOSS)
        for factor in self.factors.values():
            codes = torch.where(keep & ~factor.finite().to(keep.device), NO_GRADIENT, codes)
        return codes.to(torch.int8).cpu()


class Backward:
    """Runs one forward and backward per batch of a pass, in halves where a batch does not fit; its hooks stay."""

    def __init__(self, model: nn.Module, objective: Objective, captured: Capture, budget: Budget) -> None:
        self.model, self.objective, self.captured, self.budget = model, objective, captured, budget

    def run(self, batch: Any) -> Tensor:
        """Run a batch and return its losses [n]; losses that are not finite take no part in the backward."""
        self.captured.start(len(batch.uids), self.objective.rows(self.model, batch))
        losses = self.objective.losses(self.model, batch)
        finite = torch.isfinite(losses)
        if finite.any():
            torch.where(finite, losses, torch.zeros_like(losses)).sum().backward()
        self.captured.check()
        return losses.detach()

    def gradients(self, batch: Any) -> Gradients:
        """Run a batch and return its gradients."""
        losses = self.run(batch)
        factors = {name: factor.compact() for name, factor in self.captured.factors().items()}
        self.captured.start(None)  # holds on to nothing
        return Gradients(batch.uids, losses, factors)

    def _none(self, batch: Any) -> Gradients:
        self.captured.start(len(batch.uids))
        nan = torch.full((len(batch.uids),), torch.nan, device=batch.uids.device)
        return Gradients(batch.uids, nan, self.captured.factors(), NO_MEMORY)

    def __call__(self, batch: Any) -> Iterator[Gradients]:
        """Run a batch and give its gradients, in one piece if it fits."""
        for _, found in in_pieces(batch, self.gradients, self._none, self.budget):
            yield found


@contextmanager
def backward(model: nn.Module, objective: Objective, blocks: Sequence[Block], budget: Budget) -> Iterator[Backward]:
    """Yield what runs the batches of a pass."""
    with capture(model, blocks) as captured:
        yield Backward(model, objective, captured, budget)


def clean(found: Gradients, bad: Bad) -> Factors:
    """Return factors without the samples that something is wrong with, which are reported in `bad`."""
    codes = found.codes()
    keep = codes == FINE
    if bool(keep.all()):
        return found.factors
    bad.add_codes(found.uids.cpu(), codes)
    return {name: factor.select(keep.to(found.losses.device)) for name, factor in found.factors.items()}


def square_sums(
    batches: Iterable[Any], run: Backward, blocks: Sequence[Block], bad: Bad
) -> tuple[dict[str, float], int]:
    """Return, per block, the sum of ‖g‖² over the finite samples, and the number of these."""
    sums = {block.name: 0.0 for block in blocks}
    count = 0
    for found in (found for batch in batches for found in run(batch)):
        factors = clean(found, bad)
        for name, factor in factors.items():
            sums[name] += float(factor.sq_norm().double().sum())
        count += next(iter(factors.values())).samples
    return sums, count


def curvature_pass(
    batches: Iterable[Any], run: Backward, accumulators: Mapping[tuple[str, str], Any], bad: Bad
) -> Iterator[None]:
    """Feed the accumulators, keyed by (scorer name, block name), with the factors of the fit samples; yield after each
    batch, when all have taken it in."""
    for batch in batches:
        for found in run(batch):
            factors = clean(found, bad)
            for (_, block), accumulator in accumulators.items():
                feed(accumulator, factors[block])
            del factors, found
        yield


def feed(accumulator: Any, factor: Factor) -> None:
    """Let an accumulator take in a batch, in halves where that does not fit into memory.

    An accumulator that runs out of memory must have taken in nothing of what it was given.
    """
    try:
        accumulator.update(factor)
    except (RuntimeError, MemoryError) as problem:
        if not out_of_memory(problem) or factor.samples < 2:
            raise
    else:
        return
    free()
    middle = factor.samples // 2
    feed(accumulator, factor.select(slice(0, middle)))
    feed(accumulator, factor.select(slice(middle, None)))


class Scored(NamedTuple):
    """Some samples: uids [n], influences [columns, n] (lowest = most helpful), losses [n], and what is wrong with each
    sample [n]; both numbers are NaN where something is."""

    uids: Tensor
    scores: Tensor
    losses: Tensor
    codes: Tensor


class Scoring:
    """Scores batches against all preconditioned targets at once: `[columns, rows, cols]` per block.

    Inner products are linear, so that factors are used as they come. Norms are not: a weight that is used several times
    comes in parts, whose norms do not add up. Where columns are `normalised` a batch's factors are kept and merged.
    """

    def __init__(self, run: Backward, directions: Mapping[str, Tensor], normalised: Sequence[bool] = ()) -> None:
        self._run, self._directions = run, directions
        self._normalised = [column for column, divided in enumerate(normalised) if divided]
        self.total = torch.zeros(())

    def take(self, block: str, factor: Factor) -> None:
        """Add a block's inner products, which are linear in the gradient, so that any part of it may come alone."""
        self.total = self.total + factor.inner(self._directions[block])

    def _score(self, batch: Any) -> Scored:
        self.total = torch.zeros(self._columns(), len(batch.uids), device=batch.uids.device)
        losses, squares = self._merged(batch) if self._normalised else (self._run.run(batch), None)
        scores, self.total = -self.total, torch.zeros(())
        known = torch.isfinite(scores).all(0)
        if squares is not None:
            known = known & torch.isfinite(squares)
            scores[self._normalised] = over_norm(scores[self._normalised], squares)
        finite = torch.isfinite(losses)
        codes = torch.where(finite, torch.where(known, FINE, NO_GRADIENT), NO_LOSS)
        nan = torch.full((), torch.nan, device=scores.device)
        shown, losses = torch.where(codes == FINE, scores, nan), torch.where(finite, losses.float(), nan)
        return Scored(batch.uids, shown, losses, codes.to(torch.int8))

    def _merged(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Run a batch and take in its merged factors; return the losses [n] and ‖g‖² over all blocks [n]."""
        found = self._run.gradients(batch)
        squares = torch.zeros(len(batch.uids), device=batch.uids.device, dtype=torch.float64)
        for block, factor in found.factors.items():
            self.take(block, factor)
            squares += factor.sq_norm().double()
        return found.losses, squares

    def _none(self, batch: Any) -> Scored:
        count, device = len(batch.uids), batch.uids.device
        scores = torch.full((self._columns(), count), torch.nan, device=device)
        return Scored(batch.uids, scores, scores.new_full((count,), torch.nan), torch.full((count,), NO_MEMORY).char())

    def _columns(self) -> int:
        return len(next(iter(self._directions.values())))

    def __call__(self, batch: Any) -> Iterator[Scored]:
        """Score a batch, in one piece if it fits."""
        for _, found in in_pieces(batch, self._score, self._none, self._run.budget):
            yield found


@contextmanager
def scoring(
    model: nn.Module,
    objective: Objective,
    blocks: Sequence[Block],
    directions: Mapping[str, Tensor],
    budget: Budget,
    normalised: Sequence[bool] = (),
) -> Iterator[Scoring]:
    """Yield what scores the batches of a pass; `normalised` marks the columns that are divided by samples' norms."""
    sink: list[Scoring] = []
    taking = None if any(normalised) else lambda block, factor: sink[0].take(block, factor)
    with capture(model, blocks, sink=taking) as captured:
        sink.append(Scoring(Backward(model, objective, captured, budget), directions, normalised))
        yield sink[0]


def gradient_scorers(scorers: Sequence[Scorer]) -> list[Scorer]:
    """Return the scorers that need gradients (all but Random and its like)."""
    return [scorer for scorer in scorers if scorer.uses_gradients]
