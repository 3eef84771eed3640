"""What the passes over one pool with one subject read: which samples in which batches, for every step of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from vlmsel.data.dataset import SampleDataset
from vlmsel.gradients import Block
from vlmsel.models.subject import Subject
from vlmsel.scorers import Scorer
from vlmsel.scoring.aggregate import Aggregate
from vlmsel.scoring.batches import Batching, seeded_part
from vlmsel.scoring.checkpoints import Checkpoints, score_checkpoints
from vlmsel.scoring.curvature import FitSources, Targets
from vlmsel.scoring.halving import Budget
from vlmsel.scoring.memory_plan import Prefer
from vlmsel.scoring.pool_pass import Scored, Share, score_pool
from vlmsel.scoring.sample_pass import SamplePass
from vlmsel.scoring.source import ModelSource
from vlmsel.scoring.targets import TargetPlan, target_means
from vlmsel.scoring.virtual import EachTarget


@dataclass(frozen=True)
class FitPart:
    """Which samples P is made from.

    Attributes:
        fit: how many samples curvature is fitted on; all when None.
        scale: how many of these the damping is measured on; all when None.
        seed: draws both.
    """

    fit: int | None = None
    scale: int | None = 512
    seed: int = 0

    def draw(self, usable: Sequence[int]) -> tuple[list[int], list[int]]:
        """Draw the samples that curvature is fitted, and damping measured, on."""
        chosen = seeded_part(usable, self.fit, self.seed)
        return chosen, seeded_part(chosen, self.scale, self.seed + 1)


@dataclass(frozen=True)
class Passes:
    """The samples of a run, in batches.

    Attributes:
        subject: whose gradients are taken.
        data: the pool.
        pool: its usable samples.
        fit: the parts of them that P is made from.
        plan, goal: the targets' samples.
        columns: how many virtual targets may stand for the target samples, each a target of its own; None for none.
    """

    subject: Subject
    data: SampleDataset
    pool: ModelSource
    fit: FitSources
    plan: TargetPlan
    goal: ModelSource
    columns: int | None = None

    @classmethod
    def of(
        cls,
        subject: Subject,
        blocks: Sequence[Block],
        data: SampleDataset,
        targets: Mapping[str, SampleDataset],
        batching: Batching,
        part: FitPart = FitPart(),
        columns: int | None = None,
    ) -> Passes:
        """Plan the batches of all passes.

        Raises:
            ValueError: there is no target, or one without usable samples.
        """
        budget = Budget()

        def source(positions: Sequence[int] | None = None) -> ModelSource:
            return ModelSource(subject, blocks, batching.plan(subject, data, positions), budget)

        fit, scale = part.draw(data.candidates() if isinstance(data, SampleDataset) else data.usable())
        plan = TargetPlan.of(subject, targets, batching)
        goal = ModelSource(subject, blocks, plan.plan, budget)
        return cls(subject, data, source(), FitSources(source(fit), source(scale)), plan, goal, columns)

    @property
    def targets(self) -> Targets:
        """What is scored for."""
        return Targets(self.plan.names, partial(target_means, self.plan, self.goal))

    def score(
        self,
        scorers: Sequence[Scorer],
        folder: Path,
        share: Share = Share(),
        place: Prefer = "auto",
        checkpoints: Checkpoints = Checkpoints(),
        how: Aggregate = "sum",
    ) -> Scored | None:
        """Score the pool with all scorers, and with sums over checkpoints, or what of it is not yet done in `folder`;
        `how` says how the scores of blocks are put together.

        Returns:
            The scores, or None as long as chunks of other jobs are not there.
        """

        def passes(own: Sequence[Scorer], out: Path, each: EachTarget | None = None) -> Scored | None:
            return score_pool(self.pool, self.fit, replace(self.targets, each=each), own, out, share, place, how)

        each = None if self.columns is None else EachTarget(self.plan, self.goal, self.columns)
        scored = passes(scorers, folder, each)
        if scored is not None:
            scored = SamplePass(self.subject, self.data, self.pool, self.plan, folder).score(scored, scorers, each)
        return score_checkpoints(checkpoints, self.subject, scored, passes, folder)
