"""v_t, the mean gradient of each target's samples by their own weights, where records have some, from one stream of
batches that may mix samples of several targets.

What single target samples are worth is in virtual.py. Several processes deal the batches among them and add up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from vlmsel.scorers.base import no_vectors
from vlmsel.scoring.batches import Batching, BatchPlan, dealt, progress_bar
from vlmsel.scoring.source import REASONS, Gradients, ModelSource

VIRTUAL = "#"  # how the columns that stand for single target samples begin; no target is called so


def is_virtual(target: str) -> bool:
    """Tell whether a column stands for single target samples, not for a target of its own."""
    return target.startswith(VIRTUAL)


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
    def of(cls, subject: Subject, sets: Mapping[str, Any], batching: Batching) -> TargetPlan:
        """Put samples of like length into one batch, whatever set they are of; `sets` are data sets by name.

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
        return cls(tuple(sets), tuple(sets.values()), plan, owners)

    def __len__(self) -> int:
        return len(self.names)

    def weights(self) -> dict[int, float]:
        """Return the weight of the sample at each position that is owned, 1 where its record has none."""
        every = [sample.weight for data in self.sets for sample in data.samples]
        return {position: 1.0 if every[position] is None else float(every[position]) for position in self.owners}


def samples_at(
    samples: Sequence[Sample],
    lengths: Sequence[int],
    positions: Sequence[int],
    losses: Tensor | None = None,
    look: Callable[[str], Tensor] = no_vectors,
) -> Samples:
    """Show the samples at some positions, with their lengths, to sample scorers; `losses` are theirs, where known, and
    `look` gives their vectors."""
    chosen = [samples[i] for i in positions]
    unknown = torch.full((len(chosen),), float("nan"))
    return Samples(
        uids=torch.tensor([sample.uid for sample in chosen], dtype=torch.int64),
        losses=unknown if losses is None else losses,
        tokens=torch.tensor([lengths[i] for i in positions], dtype=torch.int64),
        sources=[sample.source for sample in chosen],
        read=lambda: ["\n".join(turn.text for turn in sample.turns) for sample in chosen],
        look=look,
        weights=torch.tensor([1.0 if sample.weight is None else sample.weight for sample in chosen]),
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
    weights, counts = plan.weights(), torch.zeros(len(plan), dtype=torch.float64)
    for position, number in plan.owners.items():
        counts[number] += weights[position]
    sums: dict[str, Tensor] = {}
    for found, positions in stream(plan, source, "targets"):
        own = torch.tensor([weights[position] for position in positions], dtype=torch.float64)
        _add(sums, found, torch.tensor([plan.owners[position] for position in positions]), own, len(plan))
    if processes.count() > 1:
        sums = added_up(sums, len(plan), source)
    return {name: total / counts.to(total)[:, None, None] for name, total in sums.items()}


def stream(plan: TargetPlan, source: ModelSource, what: str) -> Iterator[tuple[Gradients, list[int]]]:
    """Give this process's batches of target samples, with the samples' positions.

    Raises:
        ValueError: a sample has no finite gradient.
    """
    numbers = dealt(len(source.sizes))
    with source.gradients() as read, progress_bar(what, [source.sizes[i] for i in numbers]) as bar:
        for number, pieces in zip(numbers, read(numbers), strict=True):
            positions = list(plan.plan.groups[number])
            for found in pieces:
                own, positions = positions[: len(found.uids)], positions[len(found.uids) :]
                _check(found, [plan.owners[position] for position in own], plan)
                yield found, own
                bar.update(len(found.uids))


def _check(found: Gradients, owners: Sequence[int], plan: TargetPlan) -> None:
    if bool((codes := found.codes()).any()):
        row = int(codes.nonzero()[0, 0])
        raise ValueError(
            f"target {plan.names[owners[row]]}: sample {int(found.uids[row])}: {REASONS[int(codes[row])]}; remove "
            "it from the target file"
        )


def _add(sums: dict[str, Tensor], found: Gradients, owners: Tensor, own: Tensor, count: int) -> None:
    """Add gradients, by their own weights, to the sums of the targets that their samples belong to; no other target is
    touched."""
    here, rows = owners.unique(return_inverse=True)
    weights = (torch.nn.functional.one_hot(rows, len(here)) * own[:, None]).T.to(found.losses.device)  # [here, n]
    here = here.to(found.losses.device)
    for name, factor in found.factors.items():
        if name not in sums:
            sums[name] = factor.values.new_zeros(count, factor.rows, factor.cols)
        sums[name].index_add_(0, here, factor.weighted_sum(weights))


def added_up(sums: dict[str, Tensor], count: int, source: ModelSource) -> dict[str, Tensor]:
    """Add up the processes' sums, of which one that had no batch has none."""
    kinds = processes.gather({str(total.dtype) for total in sums.values()})
    dtype = torch.float64 if "torch.float64" in set().union(*kinds) else torch.float32
    like = torch.zeros(0, dtype=dtype, device=source.device)
    whole = {name: sums.get(name, like.new_zeros(count, *shape)) for name, shape in source.shapes().items()}
    for total in whole.values():
        processes.add_up(total)
    return whole
