"""Run scorers on stored gradients, without the model: others, other damping, other fit samples, samples left out.

Scoring goes block by block, since scores are sums over blocks: memory holds the accumulators of one block, one shard's
gradients on it, and the scores. The numbers are those of the streamed passes, to the rounding of the store's dtype.
With a projection, scorers run in the projected space: inner products are right on average, and curvature is that of the
projected gradients. Norms of scorers that divide by them are those of what is stored, gathered with the scores.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from vlmsel.gradients import Block, Factor
from vlmsel.gradients.store.reader import GradientStore, Masks
from vlmsel.scorers import Scorer
from vlmsel.scorers.normalise import column_squares, normalised_columns, over_norm
from vlmsel.scorers.statistics import check_kept
from vlmsel.scoring.solve import leaders, solve_all

KEPT_BYTES = 4e9  # fit samples' gradients on one block that scorers may keep in memory


def score_store(
    store: GradientStore,
    scorers: Sequence[Scorer],
    targets: Sequence[str] | None = None,
    fit: Collection[int] | None = None,
    keep: Collection[int] | None = None,
    *,
    scale: Collection[int] | None = None,
    details: dict[str, Any] | None = None,
) -> tuple[Tensor, tuple[tuple[str, str], ...], Tensor]:
    """Score stored samples with any scorers; lowest = most helpful.

    A scorer that depends on batches sees those that the store was written in, less the samples that are not fitted on.

    Args:
        store: the gradients.
        scorers: those to run, on all the targets at once.
        targets: names of the store's targets; all of them when left out.
        fit: uids of the samples that curvature is fitted on; those of `keep` when left out.
        keep: uids of the samples that are scored; all of them when left out.
        scale: uids of the samples that damping is measured on before the pass; those of `fit` when left out.
        details: gets the numbers that scorers record, by scorer and block.

    Returns:
        Uids [n], scorer and target of each column (scorers without gradients last), and scores [columns, n].

    Raises:
        ValueError: an unknown target or sample, no sample to fit on, scorers that would keep more gradients in memory
            than fit, or a score that is not finite.
    """
    fit = keep if fit is None else fit
    passes = _Passes(store, store.masks(fit, "fit"), store.masks(fit if scale is None else scale, "scale"))
    goals, wanted = _chosen(store, targets), [scorer for scorer in scorers if scorer.uses_gradients]
    passes.check(wanted)
    masks = store.masks(keep)
    uids = store.uids[torch.cat(list(masks))]
    divided = [column for column, one in enumerate(normalised_columns(wanted, len(goals))) if one]
    scores = torch.zeros(len(wanted) * len(goals), len(uids), device=store.device)
    squares = _Squares.zeros(scores)
    for block in tqdm(store.blocks, desc="scores from stored gradients", unit="block", delay=2, dynamic_ncols=True):
        if wanted:
            stack, found = passes.directions(block, wanted, store.target_gradients([block.name])[block.name][goals])
            factors = (factor for factor, _ in store.factors(block.name, masks))
            _subtract_inner(scores, stack, squares.seen(stack, factors) if divided else factors)
            _note(details, block.name, found)
    _check_scores(uids, scores + squares.samples)
    scores[divided] = squares.divide(scores, divided)
    return _with_draws(store, scorers, goals, uids, scores.cpu())


@dataclass(frozen=True)
class _Passes:
    """What is read before samples are scored: the samples that curvature is fitted, and damping measured, on."""

    store: GradientStore
    fit: Masks
    scale: Masks

    def check(self, scorers: Sequence[Scorer]) -> None:
        """Refuse empty sets of samples, and scorers that would keep too much of the largest block."""
        count = sum(int(mask.sum()) for mask in self.fit)
        if scorers and not (count and any(bool(mask.any()) for mask in self.scale)):
            raise ValueError("no sample to fit curvature or measure damping on; give at least one uid")
        largest = max(self.store.blocks, key=lambda block: block.rows * block.cols)
        check_kept(scorers, count, {largest.name: (largest.rows, largest.cols)}, limit=KEPT_BYTES)

    def directions(self, block: Block, scorers: Sequence[Scorer], targets: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Return P v of all scorers on a block, [columns, rows, cols], and what they record."""
        measured = any(scorer.needs_mean_square for scorer in scorers)
        square = self._mean_square(block) if measured else None
        led = leaders(scorers)
        leading = [scorer for scorer in scorers if led[scorer.name] == scorer.name]
        running = {(scorer.name, block.name): scorer.accumulator(targets, square) for scorer in leading}
        for factor, sizes in self.store.factors(block.name, self.fit):
            for scorer, accumulator in zip(leading, running.values(), strict=True):
                for part in _batches(factor, sizes) if scorer.depends_on_batches else [factor]:
                    accumulator.update(part)
        solved = {name: (h, found) for (name, _), h, found in solve_all(scorers, running, [block.name])}
        stack = torch.cat([solved[scorer.name][0] for scorer in scorers])
        return stack, {scorer.name: solved[scorer.name][1] for scorer in scorers}

    def _mean_square(self, block: Block) -> float:
        total, count = 0.0, 0
        for factor, _ in self.store.factors(block.name, self.scale):
            total += float(factor.sq_norm().double().sum())
            count += factor.samples
        return total / (count * block.rows * block.cols)


def _batches(factor: Factor, sizes: Sequence[int]) -> Iterator[Factor]:
    start = 0
    for size in sizes:
        if size:
            yield factor.select(slice(start, start + size))
        start += size


def _subtract_inner(scores: Tensor, stack: Tensor, factors: Iterable[Factor]) -> None:
    start = 0
    for factor in factors:
        scores[:, start : start + factor.samples] -= factor.inner(stack)
        start += factor.samples


@dataclass(frozen=True)
class _Squares:
    """Squared norms over the blocks seen so far: of the columns [columns] and of the samples [n]."""

    columns: Tensor
    samples: Tensor

    @classmethod
    def zeros(cls, scores: Tensor) -> _Squares:
        return cls(*(torch.zeros(size, dtype=torch.float64, device=scores.device) for size in scores.shape))

    def seen(self, stack: Tensor, factors: Iterable[Factor]) -> Iterator[Factor]:
        """Pass a block's factors on, after adding up their norms and those of its stack."""
        self.columns.add_(column_squares(stack))
        start = 0
        for factor in factors:
            self.samples[start : start + factor.samples] += factor.sq_norm().double()
            start += factor.samples
            yield factor

    def divide(self, scores: Tensor, columns: list[int]) -> Tensor:
        """Return some columns of the scores over both norms."""
        return over_norm(over_norm(scores[columns], self.columns[columns, None]), self.samples)


def _note(details: dict[str, Any] | None, block: str, found: Mapping[str, Any]) -> None:
    if details is not None:
        for name, numbers in found.items():
            details.setdefault(name, {})[block] = numbers


def _chosen(store: GradientStore, targets: Sequence[str] | None) -> list[int]:
    names = store.targets if targets is None else targets
    unknown = [name for name in names if name not in store.targets]
    if unknown or not names:
        asked = repr(unknown[0]) if unknown else "asked for"
        raise ValueError(f"{store.folder}: no target {asked}; the gradient store has {', '.join(store.targets)}")
    return [store.targets.index(name) for name in names]


def _check_scores(uids: Tensor, scores: Tensor) -> None:
    finite = torch.isfinite(scores).all(0).cpu()
    if not bool(finite.all()):
        bad = uids[~finite]
        raise ValueError(
            f"the scores of {len(bad)} of {len(uids)} samples are not finite, the first: {int(bad[0])}; leave them out "
            "of `keep`"
        )


def _with_draws(
    store: GradientStore, scorers: Sequence[Scorer], goals: list[int], uids: Tensor, scores: Tensor
) -> tuple[Tensor, tuple[tuple[str, str], ...], Tensor]:
    """Add the columns of scorers that need no gradients, behind the others as in a streamed run."""
    goal_names = [store.targets[goal] for goal in goals]
    drawing = [scorer for scorer in scorers if not scorer.uses_gradients]
    ordered = [scorer for scorer in scorers if scorer.uses_gradients] + drawing
    draws = [scorer.draw(uids, goal_names).to(scores) for scorer in drawing]  # type: ignore[attr-defined]
    names = tuple((scorer.name, target) for scorer in ordered for target in goal_names)
    return uids, names, torch.cat([scores, *draws])
