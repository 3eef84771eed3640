"""v_t, the mean gradient of each target's samples, from one stream of batches that may mix samples of several targets.

A target is a set of samples, or one sample alone: a hundred of them take as many passes as the same samples in one set.
Several processes deal the batches among them and add up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset

from vlmsel import processes
from vlmsel.data.sample import Sample
from vlmsel.models.subject import Subject
from vlmsel.scorers import Samples
from vlmsel.scoring.batches import Batching, BatchPlan, dealt, progress_bar
from vlmsel.scoring.source import REASONS, Gradients, ModelSource


@dataclass(frozen=True)
class TargetPlan:
    """All samples of the targets in one plan of batches.

    Attributes:
        names: what the targets are called, in the order of the columns.
        sets: the data sets that the samples are from, one after the other.
        plan: the batches of all samples.
        owners: number of the target that the sample at a position of the sets belongs to.
    """

    names: tuple[str, ...]
    sets: tuple[Any, ...]
    plan: BatchPlan
    owners: Mapping[int, int]

    @classmethod
    def of(cls, subject: Subject, sets: Mapping[str, Any], batching: Batching, each: bool = False) -> TargetPlan:
        """Put samples of like length into one batch, whatever set they are of.

        `sets` are data sets by name; with `each` every sample is a target of its own, called `<set>:<uid>`.

        Raises:
            ValueError: there is no set, or one has no usable sample.
        """
        if not sets:
            raise ValueError("no target; give at least one")
        starts = list(accumulate((len(data) for data in sets.values()), initial=0))
        pairs = list(zip(starts, sets.values(), strict=False))
        owners = {start + i: number for number, (start, data) in enumerate(pairs) for i in data.usable()}
        require_samples(tuple(sets), Counter(owners.values()))
        lengths = [length for data in sets.values() for length in data.lengths()]
        groups = batching.groups(sorted(owners), lengths)
        data: Any = ConcatDataset(list(sets.values()))
        plan = BatchPlan(data, subject.collate, groups, subject.device, batching.workers)
        names = tuple(sets)
        if each:
            uids = [uid for data in sets.values() for uid in data.uids]
            names = tuple(f"{names[owners[position]]}:{uids[position]}" for position in sorted(owners))
            owners = {position: number for number, position in enumerate(sorted(owners))}
        return cls(names, tuple(sets.values()), plan, owners)

    def samples(self) -> dict[str, Samples]:
        """Show each target's samples to sample scorers."""
        whole: list[list[int]] = [[] for _ in self.names]
        for position, number in self.owners.items():
            whole[number].append(position)
        samples = [sample for data in self.sets for sample in data.samples]
        lengths = [length for data in self.sets for length in data.lengths()]
        return {name: samples_at(samples, lengths, own) for name, own in zip(self.names, whole, strict=True)}

    def __len__(self) -> int:
        return len(self.names)


def samples_at(
    samples: Sequence[Sample], lengths: Sequence[int], positions: Sequence[int], losses: Tensor | None = None
) -> Samples:
    """Show the samples at some positions, with their lengths, to sample scorers; `losses` are theirs, where known."""
    chosen = [samples[i] for i in positions]
    unknown = torch.full((len(chosen),), float("nan"))
    return Samples(
        uids=torch.tensor([sample.uid for sample in chosen], dtype=torch.int64),
        losses=unknown if losses is None else losses,
        tokens=torch.tensor([lengths[i] for i in positions], dtype=torch.int64),
        sources=[sample.source for sample in chosen],
        read=lambda: ["\n".join(turn.text for turn in sample.turns) for sample in chosen],
    )


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


def target_means(plan: TargetPlan, source: ModelSource) -> dict[str, Tensor]:
    """Return the mean gradients of all targets, in float32 or better. [targets, rows, cols] per block

    Raises:
        ValueError: a target has no sample, or one without a finite gradient: it would enter every score.
    """
    shared = Counter(plan.owners[position] for group in plan.plan.groups for position in group)
    require_samples(plan.names, shared)
    counts = torch.tensor([shared[number] for number in range(len(plan))])
    sums = _sums(plan, source)
    if processes.count() > 1:
        sums = _added_up(sums, len(plan), source)
    return {name: total / counts.to(total)[:, None, None] for name, total in sums.items()}


def _sums(plan: TargetPlan, source: ModelSource) -> dict[str, Tensor]:
    """Return the summed gradients over this process's batches; a block is missing where it has none."""
    sums: dict[str, Tensor] = {}
    numbers = dealt(len(source.sizes))
    with source.gradients() as read, progress_bar("targets", [source.sizes[i] for i in numbers]) as bar:
        for number, pieces in zip(numbers, read(numbers), strict=True):
            owners = [plan.owners[position] for position in plan.plan.groups[number]]
            for found in pieces:
                own, owners = owners[: len(found.uids)], owners[len(found.uids) :]
                _check(found, own, plan)
                _add(sums, found, torch.tensor(own), len(plan))
                bar.update(len(found.uids))
    return sums


def _check(found: Gradients, owners: Sequence[int], plan: TargetPlan) -> None:
    if bool((codes := found.codes()).any()):
        row = int(codes.nonzero()[0, 0])
        raise ValueError(
            f"target {plan.names[owners[row]]}: sample {int(found.uids[row])}: {REASONS[int(codes[row])]}; remove "
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


def _added_up(sums: dict[str, Tensor], count: int, source: ModelSource) -> dict[str, Tensor]:
    """Add up the processes' sums, of which one that had no batch has none."""
    kinds = processes.gather({str(total.dtype) for total in sums.values()})
    dtype = torch.float64 if "torch.float64" in set().union(*kinds) else torch.float32
    like = torch.zeros(0, dtype=dtype, device=source.device)
    whole = {name: sums.get(name, like.new_zeros(count, *shape)) for name, shape in source.shapes().items()}
    for total in whole.values():
        processes.add_up(total)
    return whole
