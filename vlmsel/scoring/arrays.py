"""Scores for gradients that are in memory already; the same accumulators as for a streamed pool."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from vlmsel.gradients import Factor
from vlmsel.scorers.base import Scorer
from vlmsel.scorers.normalise import column_squares, over_norm


def score_gradients(gradients: Mapping[str, Tensor], targets: Mapping[str, Tensor], scorer: Scorer) -> Tensor:
    """Return the influence I = -Σ_l ⟨P_l v_t, g_i⟩ of every sample on every target; lowest = most helpful.

    All samples are fit samples. float64 inputs are scored in float64. Scores of a `normalised` scorer are divided by
    the norms of P v_t and g_i over all blocks, and 0 where one of them is 0.

    Args:
        gradients: per block, the samples' gradients [n, rows, cols].
        targets: per block, the targets' mean gradients [targets, rows, cols].
        scorer: whose preconditioner P is used.

    Returns:
        Scores [targets, n].

    Raises:
        ValueError: the blocks or shapes do not fit each other, or a number is not finite.

    >>> from vlmsel.scorers.tracin import TracIn
    >>> gradients = {"w": torch.tensor([[[1.0, 0.0]], [[-1.0, 2.0]]])}
    >>> score_gradients(gradients, {"w": torch.tensor([[[3.0, 0.0]]])}, TracIn()).tolist()
    [[-3.0, 3.0]]
    """
    check_arrays(gradients, targets)
    if not scorer.uses_gradients:
        samples, goals = len(next(iter(gradients.values()))), len(next(iter(targets.values())))
        return scorer.draw(torch.arange(samples), [str(t) for t in range(goals)])  # type: ignore[attr-defined]
    total, goals, samples = (sum(parts) for parts in zip(*_blocks(gradients, targets, scorer), strict=True))
    scores = -torch.as_tensor(total)
    return over_norm(over_norm(scores, goals[:, None]), samples) if scorer.normalised else scores  # type: ignore[index]


def _blocks(
    gradients: Mapping[str, Tensor], targets: Mapping[str, Tensor], scorer: Scorer
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Give each block's ⟨P v, g⟩ [targets, n], ‖P v‖² [targets] and ‖g‖² [n]."""
    for name in gradients:
        yield _block_inner(gradients[name], targets[name], scorer)


def _block_inner(gradients: Tensor, targets: Tensor, scorer: Scorer) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(gradients.dtype, targets.dtype)
    factor = Factor.from_dense(gradients.to(dtype))
    squares = factor.sq_norm().double()
    mean_square = float(squares.sum()) / max(1, factor.samples * factor.rows * factor.cols)
    accumulator = scorer.accumulator(targets.to(factor.values), mean_square)
    accumulator.update(factor)
    solved = accumulator.solve()
    return factor.inner(solved), column_squares(solved), squares


def check_arrays(gradients: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> None:
    """Refuse blocks that do not fit each other, naming the first."""
    if not gradients:
        raise ValueError("no block given: gradients must map at least one name to a tensor [n, rows, cols]")
    if set(gradients) != set(targets):
        differ = sorted(set(gradients) ^ set(targets))
        raise ValueError(f"gradients and targets have different blocks: {', '.join(differ)} only on one side")
    for name, gradient in gradients.items():
        target = targets[name]
        if gradient.ndim != 3 or target.ndim != 3 or gradient.shape[1:] != target.shape[1:]:
            raise ValueError(
                f"block {name}: expected gradients [n, rows, cols] and targets [targets, rows, cols], got "
                f"{list(gradient.shape)} and {list(target.shape)}"
            )
        for what, each in (("gradient of sample", gradient), ("target", target)):
            finite = Factor.from_dense(each).finite()
            if not bool(finite.all()):
                raise ValueError(
                    f"block {name}: {what} {int(finite.logical_not().nonzero()[0])} is not finite; leave it out"
                )
    counts = {"gradients": {len(g) for g in gradients.values()}, "targets": {len(t) for t in targets.values()}}
    for what, numbers in counts.items():
        if len(numbers) > 1:
            raise ValueError(f"{what} of different blocks have different lengths: {sorted(numbers)}")
