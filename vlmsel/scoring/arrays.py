"""Scores for gradients that are in memory already; the same passes as for a streamed pool."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from vlmsel.gradients import Factor
from vlmsel.scorers import GradientScorer, Samples, Scorer
from vlmsel.scorers.base import SampleScorer
from vlmsel.scoring.aggregate import Aggregate, aggregate, check_aggregate
from vlmsel.scoring.curvature import FitSources, Targets, precondition
from vlmsel.scoring.no_gradient import check_scores
from vlmsel.scoring.score_pass import ScoreReducer
from vlmsel.scoring.source import ArraySource


def score_gradients(
    gradients: Mapping[str, Float[Tensor, "n _rows _cols"]],
    targets: Mapping[str, Float[Tensor, "targets _rows _cols"]],
    scorer: Scorer,
    how: Aggregate = "sum",
) -> Float[Tensor, "targets n"]:
    """Return the influence I = -Σ_l ⟨P_l v_t, g_i⟩ of every sample on every target; lowest = most helpful.

    All samples are fit samples. float64 inputs are scored in float64. Scores of a `normalised` scorer are divided by
    the norms of P v_t and g_i over all blocks, and 0 where one of them is 0.

    Args:
        gradients: per block, the samples' gradients.
        targets: per block, the targets' mean gradients.
        scorer: whose preconditioner P is used.
        how: how the scores of blocks are put together: sum, scaled, rank or vote (see `scoring/aggregate.py`).

    Raises:
        ValueError: the blocks or shapes do not fit each other, a number is not finite, or all scores of a target are 0.

    >>> from vlmsel.scorers.tracin import TracIn
    >>> gradients = {"w": torch.tensor([[[1.0, 0.0]], [[-1.0, 2.0]]])}
    >>> score_gradients(gradients, {"w": torch.tensor([[[3.0, 0.0]]])}, TracIn()).tolist()
    [[-3.0, 3.0]]
    """
    check_arrays(gradients, targets)
    names = tuple(str(number) for number in range(len(next(iter(targets.values())))))
    if isinstance(scorer, SampleScorer):
        nobody = _numbered(0)
        return scorer.score(_numbered(len(next(iter(gradients.values())))), {name: nobody for name in names})
    assert isinstance(scorer, GradientScorer)
    wide = {name: torch.promote_types(own.dtype, targets[name].dtype) for name, own in gradients.items()}
    source = ArraySource({name: own.to(wide[name]) for name, own in gradients.items()})
    if not source.sizes[0]:
        return next(iter(source.factors.values())).values.new_zeros(len(names), 0)
    v = {name: own.to(wide[name]) for name, own in targets.items()}
    h = precondition(Targets(names, lambda: v), FitSources(source, source), [scorer])
    check_aggregate(how)
    kept = [] if how == "sum" else range(len(names))
    with source.passing(ScoreReducer(h.stacks, h.normalised, by_block=kept)) as read:
        ((found,),) = read([0])
    check_scores(h.names, found.scores, h.stacks)
    return found.scores if how == "sum" else aggregate(found.by_block, how)


def _numbered(count: int) -> Samples:
    """Return samples of which nothing is known but their number."""
    unknown = torch.full((count,), float("nan"))
    return Samples(torch.arange(count), unknown, torch.zeros(count, dtype=torch.int64), [""] * count, lambda: [])


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
            bad = Factor.from_dense(each).finite().logical_not().nonzero()
            if len(bad):
                raise ValueError(f"block {name}: {what} {int(bad[0])} is not finite; leave it out")
    counts = {"gradients": {len(g) for g in gradients.values()}, "targets": {len(t) for t in targets.values()}}
    for what, numbers in counts.items():
        if len(numbers) > 1:
            raise ValueError(f"{what} of different blocks have different lengths: {sorted(numbers)}")
