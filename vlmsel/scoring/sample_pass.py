"""What scorers that look at the samples themselves say: scores, and affinities to single target samples by vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from vlmsel.data.dataset import SampleDataset
from vlmsel.models.subject import Subject
from vlmsel.scorers import FeatureScorer, Samples, Scorer
from vlmsel.scorers.base import feature_scorers, sample_scorers
from vlmsel.scoring.pool_pass import PoolAffinities, Scored, ScorerAffinities
from vlmsel.scoring.source import ModelSource
from vlmsel.scoring.targets import TargetPlan, samples_at
from vlmsel.scoring.vectors import in_order, sample_vectors
from vlmsel.scoring.virtual import EachTarget, TargetSample, Virtual


@dataclass(frozen=True)
class SamplePass:
    """A run's samples, as they are shown to these scorers.

    Attributes:
        subject: reads samples where a scorer asks for vectors.
        data, pool: the pool, and its batches.
        plan: the targets' samples.
        folder: the run folder.
    """

    subject: Subject
    data: SampleDataset
    pool: ModelSource
    plan: TargetPlan
    folder: Path
    held: dict[tuple[str, bool], Tensor] = field(default_factory=dict)  # vectors of the pool and of the targets

    def score(self, scored: Scored, scorers: Sequence[Scorer], each: EachTarget | None) -> Scored:
        """Add the columns of these scorers, and their affinities where target samples are targets of their own."""
        if not sample_scorers(scorers):
            return scored
        places = {uid: position for position, uid in enumerate(self.data.uids)}
        where = [places[uid] for uid in scored.uids.tolist()]
        samples = self._samples(where, scored.losses)
        scored = scored.with_samples(scorers, samples, self._targets())
        if each is None or not (wanted := feature_scorers(scorers)):
            return scored
        known = scored.affinities
        rows = torch.isfinite(scored.losses) & scored.fine() if known is None else torch.isin(scored.uids, known.uids)
        targets = each.look().samples if known is None else known.targets
        own = self._samples([position for position, row in zip(where, rows.tolist(), strict=True) if row])
        goals = self._target_samples(sorted(self.plan.owners))
        found = {one.name: feature_affinities(one, own, goals, targets, each.columns) for one in wanted}
        of = {**({} if known is None else known.of), **found}
        order = dict.fromkeys(one.name for one in scorers if one.name in of)
        whole = PoolAffinities(scored.uids[rows], targets, {name: of[name] for name in order})
        return replace(scored, affinities=whole)

    def _samples(self, positions: Sequence[int], losses: Tensor | None = None) -> Samples:
        def look(kind: str) -> Tensor:
            return in_order(self._vectors(kind, True), self.pool.plan, positions)

        return samples_at(self.data.samples, self.data.lengths(), positions, losses, look)

    def _vectors(self, kind: str, pool: bool) -> Tensor:
        """Return the vectors of the pool, or of the targets, in the order of its plan; made once."""
        if (kind, pool) not in self.held:
            plan, folder = (self.pool.plan, self.folder) if pool else (self.plan.plan, None)
            self.held[kind, pool] = sample_vectors(kind, self.subject, plan, folder, self.pool.budget)
        return self.held[kind, pool]

    def _targets(self) -> dict[str, Samples]:
        """Show each target's samples."""
        whole: list[list[int]] = [[] for _ in self.plan.names]
        for position, number in self.plan.owners.items():
            whole[number].append(position)
        return {name: self._target_samples(own) for name, own in zip(self.plan.names, whole, strict=True)}

    def _target_samples(self, positions: Sequence[int]) -> Samples:
        def look(kind: str) -> Tensor:
            return in_order(self._vectors(kind, False), self.plan.plan, positions)

        samples = [sample for data in self.plan.sets for sample in data.samples]
        lengths = [length for data in self.plan.sets for length in data.lengths()]
        return samples_at(samples, lengths, positions, None, look)


def feature_affinities(
    scorer: FeatureScorer, samples: Samples, goals: Samples, targets: Sequence[TargetSample], columns: int
) -> ScorerAffinities:
    """Return a feature scorer's affinities through at most so many columns, which stand for its target vectors.

    Raises:
        ValueError: a vector is not finite.
    """
    found = scorer.features(samples, goals)
    for vectors, who in ((found.samples, "pool"), (found.targets, "targets")):
        if not bool(torch.isfinite(vectors.coalesce().values() if vectors.is_sparse else vectors).all()):
            raise ValueError(f"{scorer.name}: a vector of the {who} is not finite")
    squares = _squares(found.targets)
    if not bool(squares.any()):
        raise ValueError(f"{scorer.name}: no target sample has a vector other than 0, so that none can choose by it")
    virtual = Virtual.of(targets, squares, _gram(found.targets, squares) if len(targets) > columns else None, columns)
    w = (found.targets.T.double() @ virtual.weights.T).T  # [r, d]; the sparse one comes first
    c = (found.samples.double() @ w.T).float()
    norms = _squares(found.samples).sqrt().float()
    return ScorerAffinities(virtual, c, norms, squares.sqrt().float(), w @ w.T)


def _squares(vectors: Tensor) -> Tensor:
    """Return squared norms, in float64. [n, d] -> [n]"""
    whole = (vectors * vectors).sum(1)
    return (whole.to_dense() if whole.is_sparse else whole).double()


def _gram(vectors: Tensor, squares: Tensor) -> Tensor:
    """Return the Gram matrix of the vectors' directions. [T, T]"""
    norms = squares.sqrt().clamp_min(1e-300)
    dense = vectors.to_dense() if vectors.is_sparse else vectors  # torch warns where both sides are sparse
    return vectors.double() @ dense.T.double() / norms / norms[:, None]
