"""The score pass: I(i, t) = -Σ_l ⟨h_t^l, g_i^l⟩ for all scorers and targets from one backward; lowest = most helpful.

Nothing per-sample is kept but scores. A sample whose loss or gradient is not finite is left out and reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vlmsel.gradients import Factor
from vlmsel.scorers.base import Metric
from vlmsel.scorers.normalise import over_norm
from vlmsel.scoring.source import FINE, NO_GRADIENT, NO_LOSS, Reducer


class BatchScores(NamedTuple):
    """Some samples: uids [n], influences [columns, n] (lowest = most helpful), losses [n], what is wrong with each
    sample [n], its squared norms [metrics, n], and influences by block, of the columns that are kept so [blocks, kept,
    n]; the numbers are NaN where something is."""

    uids: Tensor
    scores: Tensor
    losses: Tensor
    codes: Tensor
    squares: Tensor
    by_block: Tensor

    @classmethod
    def joined(cls, parts: Sequence[BatchScores]) -> BatchScores:
        """Put the samples of several parts one after the other."""
        return cls(*(torch.cat(each, -1) for each in zip(*parts, strict=True)))


class ScoreReducer(Reducer[BatchScores]):
    """Scores batches against all preconditioned targets at once: `[columns, rows, cols]` per block.

    Inner products are linear in the gradient, so that any part of it may come alone, and factors are dropped as soon as
    they were used. Norms are not: where columns are `normalised`, or `metrics` are wanted, whole gradients are taken.
    The first metric is the plain norm. Columns of `by_block` are kept by block, too.
    """

    def __init__(
        self,
        stacks: Mapping[str, Tensor],
        normalised: Sequence[bool] = (),
        metrics: Sequence[Mapping[str, Metric]] = (),
        by_block: Sequence[int] = (),
    ) -> None:
        self.stacks, self._metrics = stacks, metrics
        self._columns = len(next(iter(stacks.values())))
        self._kept, self._places = list(by_block), {name: place for place, name in enumerate(stacks) if by_block}
        self._normalised = [column for column, divided in enumerate(normalised) if divided]
        self._plain = bool(self._normalised) or bool(metrics)
        self.whole, self.gradients = self._plain, self._plain or self._columns > 0

    def start(self, uids: Tensor) -> None:
        self._total = torch.zeros(self._columns, len(uids), device=uids.device)
        self._by_block = torch.zeros(len(self._places), len(self._kept), len(uids), device=uids.device)
        count = max(len(self._metrics), int(self._plain))
        self._squares = torch.zeros(count, len(uids), device=uids.device, dtype=torch.float64)

    def nothing(self) -> BatchScores:
        """Return the scores of no samples, on the CPU."""
        uids = torch.zeros(0, dtype=torch.int64, device=next(iter(self.stacks.values())).device)
        self.start(uids)
        found = self.finish(uids, torch.zeros(0, device=uids.device), FINE, [])
        return BatchScores(*(tensor.cpu() for tensor in found))

    def take(self, block: str, factor: Factor) -> None:
        inner = factor.inner(self.stacks[block])
        self._total = self._total + inner
        if self._kept:
            self._by_block[self._places[block]] += inner[self._kept]
        if self._plain:
            self._squares[0] += factor.sq_norm().double()
        for total, metric in zip(self._squares[1:], self._metrics[1:], strict=True):
            total += metric[block].squares(factor).double()

    def finish(self, uids: Tensor, losses: Tensor, code: int, sizes: Sequence[int]) -> BatchScores:
        scores = -self._total
        known = torch.isfinite(scores).all(0)
        if self._plain:
            known = known & torch.isfinite(self._squares).all(0)
            scores[self._normalised] = over_norm(scores[self._normalised], self._squares[0])
        divided = [place for place, column in enumerate(self._kept) if column in self._normalised]
        by_block = -self._by_block
        if divided:
            by_block[:, divided] = over_norm(by_block[:, divided], self._squares[0])
        finite = torch.isfinite(losses)
        codes = torch.where(finite, torch.where(known, FINE, NO_GRADIENT), code or NO_LOSS)
        nan = torch.full((), torch.nan, device=scores.device)
        shown, losses = torch.where(codes == FINE, scores, nan), torch.where(finite, losses.float(), nan)
        squares = torch.where(codes == FINE, self._squares[: len(self._metrics)], nan.double())
        by_block = torch.where(codes == FINE, by_block, nan)
        return BatchScores(uids, shown, losses, codes.to(torch.int8), squares, by_block)
