"""v_t, the mean gradient of each target's samples, from one stream of batches that may mix samples of several targets.

A target is a set of samples, or one sample alone: a hundred of them take as many passes as the same samples in one set.
Several processes deal the batches among them and add up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset

from vlmsel import processes
from vlmsel.gradients import Block
from vlmsel.scoring.batches import BatchPlan
from vlmsel.scoring.score_pass import REASONS, Backward, Gradients


@dataclass(frozen=True)
class Targets:
    """The targets and one plan of all their batches; iterates over the names.

    Attributes:
        names: what the targets are called, in the order of the columns.
        plan: the batches of all samples.
        owners: number of the target that the sample at a position of the plan's data belongs to.
    """

    names: tuple[str, ...]
    plan: BatchPlan
    owners: Mapping[int, int]

    @classmethod
    def of(cls, targets: Targets | Mapping[str, BatchPlan]) -> Targets:
        """Put plans of targets together, one after the other with the batches that they have.

        Raises:
            ValueError: there is none.
        """
        if isinstance(targets, Targets):
            return targets
        if not targets:
            raise ValueError("no target; give at least one")
        plans = list(targets.values())
        starts = list(accumulate((len(plan.data) for plan in plans), initial=0))  # type: ignore[arg-type]
        owners = {
            start + position: number
            for number, (start, plan) in enumerate(zip(starts, plans, strict=False))
            for group in plan.groups
            for position in group
        }
        groups = [
            [start + position for position in group]
            for start, plan in zip(starts, plans, strict=False)
            for group in plan.groups
        ]
        first = plans[0]
        data: Any = ConcatDataset([plan.data for plan in plans])
        return cls(tuple(targets), BatchPlan(data, first.collate, groups, first.device, first.workers), owners)

    def rebatched(self, groups: Sequence[Sequence[int]]) -> Targets:
        """Return the same targets from other batches, of positions in the data of all sets one after the other."""
        return replace(self, plan=replace(self.plan, groups=groups))

    def apart(self, uids: Sequence[int]) -> Targets:
        """Make every sample a target of its own, called `<set>:<uid>`; `uids` are those of all positions.

        Raises:
            ValueError: a set has no sample.
        """
        require_samples(self.names, Counter(self.owners.values()))
        order = sorted(self.owners)
        names = tuple(f"{self.names[self.owners[position]]}:{uids[position]}" for position in order)
        return replace(self, names=names, owners={position: number for number, position in enumerate(order)})

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def require_samples(names: Sequence[str], counts: Mapping[int, int]) -> None:
    """Refuse targets, by number, that have no samples.

    Raises:
        ValueError: names the first.
    """
    for number, name in enumerate(names):
        if not counts.get(number):
            raise ValueError(
                f"target {name}: a target set without usable samples has no gradient; give at least one sample"
            )


def target_means(targets: Targets, run: Backward, blocks: Sequence[Block]) -> dict[str, Tensor]:
    """Return the mean gradients of all targets, `[targets, rows, cols]` per block in float32 or better.

    Raises:
        ValueError: a target has no sample, or one without a finite gradient: it would enter every score.
    """
    shared = Counter(targets.owners[position] for group in targets.plan.groups for position in group)
    require_samples(targets.names, shared)
    counts = torch.tensor([shared[number] for number in range(len(targets))])
    sums = _sums(targets, run)
    if processes.count() > 1:
        sums = _added_up(sums, targets, run, blocks)
    return {name: total / counts.to(total)[:, None, None] for name, total in sums.items()}


def _sums(targets: Targets, run: Backward) -> dict[str, Tensor]:
    """Return the summed gradients over this process's batches; a block is missing where it has none."""
    sums: dict[str, Tensor] = {}
    plan = targets.plan.dealt()
    for group, batch in zip(plan.groups, plan.shown("targets"), strict=True):
        owners = [targets.owners[position] for position in group]
        for found in run(batch):
            own, owners = owners[: len(found.uids)], owners[len(found.uids) :]
            _check(found, own, targets)
            _add(sums, found, torch.tensor(own), len(targets))
    return sums


def _check(found: Gradients, owners: Sequence[int], targets: Targets) -> None:
    if bool((codes := found.codes()).any()):
        row = int(codes.nonzero()[0, 0])
        raise ValueError(
            f"target {targets.names[owners[row]]}: sample {int(found.uids[row])}: {REASONS[int(codes[row])]}; remove "
            "it from the target file"
        )


def _add(sums: dict[str, Tensor], found: Gradients, owners: Tensor, count: int) -> None:
    """Add gradients to the sums of the targets that their samples belong to; no other target is touched."""
    here, rows = owners.unique(return_inverse=True)
    weights = torch.nn.functional.one_hot(rows, len(here)).T.to(found.losses.device)  # [here, n]
    here = here.to(found.losses.device)
    for name, factor in found.factors.items():
        if name not in sums:
            sums[name] = factor.values.new_zeros(count, factor.rows, factor.cols)
        sums[name].index_add_(0, here, factor.weighted_sum(weights))


def _added_up(sums: dict[str, Tensor], targets: Targets, run: Backward, blocks: Sequence[Block]) -> dict[str, Tensor]:
    """Add up the processes' sums, of which one that had no batch has none."""
    kinds = processes.gather({str(total.dtype) for total in sums.values()})
    dtype = torch.float64 if "torch.float64" in set().union(*kinds) else torch.float32
    device = next(run.model.parameters()).device
    count = len(targets)
    whole = {b.name: sums.get(b.name, torch.zeros(count, b.rows, b.cols, dtype=dtype, device=device)) for b in blocks}
    for total in whole.values():
        processes.add_up(total)
    return whole
