"""Batches of chosen samples of a data set, of like length together, in an order that the configuration alone decides.

The batches of a large pool go by windows of samples in its own order: how long they are is found when a window's turn
comes, and like lengths come together within it. To all who number batches a window is one batch, run in several pieces.

Several processes share a plan by dealing its batches, or its chunks of batches, in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from vlmsel import processes, progress
from vlmsel.data.batches import length_batches
from vlmsel.data.dataset import SampleDataset
from vlmsel.models.subject import Subject

WINDOW = 2048  # samples


@dataclass(frozen=True)
class BatchPlan:
    """Which samples come in which batch.

    Attributes:
        data: gives one encoded sample per position.
        collate: makes a batch, with `to(device)`, of a list of them.
        groups: the positions of each batch.
        device: where batches go.
        workers: processes that read samples.
        cut: makes batches of a group, a window, without those samples that cannot be used; None: it is one batch.
    """

    data: Dataset[Any]
    collate: Callable[[list[Any]], Any]
    groups: Sequence[Sequence[int]]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    workers: int = 0
    cut: Callable[[Sequence[int]], list[list[int]]] | None = None

    @cached_property
    def sizes(self) -> list[int]:
        """Samples per group."""
        return [len(group) for group in self.groups]

    def batches(self, numbers: Iterable[int] | None = None) -> Iterator[Any]:
        """Give the batches of the groups of these numbers, or all, on the device."""
        return (batch for group in self.by_group(numbers) for batch in group)

    def by_group(self, numbers: Iterable[int] | None = None) -> Iterator[Iterator[Any]]:
        """Give, for each of these groups, its batches."""
        chosen = range(len(self.groups)) if numbers is None else numbers
        if self.cut is None:
            yield from (iter([batch]) for batch in self._loaded([list(self.groups[number]) for number in chosen]))
            return
        for number in chosen:
            yield self._loaded(self.cut(self.groups[number]))

    def order(self) -> Iterator[int]:
        """Give the positions of all samples in the order in which they are run."""
        for group in self.groups:
            yield from group if self.cut is None else (position for batch in self.cut(group) for position in batch)

    def _loaded(self, groups: list[list[int]]) -> Iterator[Any]:
        loader = DataLoader(self.data, batch_sampler=groups, collate_fn=self.collate, num_workers=self.workers)  # type: ignore[arg-type]
        for batch in loader:
            yield batch.to(self.device)


@dataclass(frozen=True)
class Batching:
    """How samples are put together.

    Attributes:
        max_tokens: most tokens in a batch, patches and padding included.
        max_samples: most samples in a batch; as many as the tokens allow when None.
        workers: processes that read samples.
    """

    max_tokens: int = 8192
    max_samples: int | None = None
    workers: int = 0

    def groups(self, positions: Sequence[int], lengths: Sequence[int] | Mapping[int, int]) -> list[list[int]]:
        """Put positions of like length together; `lengths` are those at all positions."""
        groups = length_batches([lengths[i] for i in positions], self.max_samples, self.max_tokens)
        return [[positions[i] for i in group] for group in groups]

    def plan(self, subject: Subject, data: Any, positions: Sequence[int] | None = None) -> BatchPlan:
        """Plan batches of a `SampleDataset` or its like; all usable samples when `positions` is left out."""
        if isinstance(data, SampleDataset) and data.large:
            return self._windows(subject, data, data.candidates() if positions is None else positions)
        chosen = data.usable() if positions is None else positions
        return BatchPlan(data, subject.collate, self.groups(chosen, data.lengths()), subject.device, self.workers)

    def _windows(self, subject: Subject, data: SampleDataset, positions: Sequence[int]) -> BatchPlan:
        def cut(window: Sequence[int]) -> list[list[int]]:
            lengths = data.lengths_of(window)
            return self.groups(list(lengths), lengths)

        windows = [positions[start : start + WINDOW] for start in range(0, len(positions), WINDOW)]
        return BatchPlan(data, subject.collate, windows, subject.device, self.workers, cut)


def dealt(count: int) -> range:
    """Return the numbers of the batches that are this process's among several: every so manieth."""
    return range(processes.rank(), count, processes.count())


def progress_bar(what: str, sizes: Sequence[int], done: int = 0) -> Any:
    """Return a progress bar in samples over batches of these sizes, of which `done` samples are done."""
    return progress.bar(what, sum(sizes), "sample", done)


def seeded_part(positions: Sequence[int], count: int | None, seed: int) -> list[int]:
    """Draw `count` of the positions without repetition (all when None or more than there are), in rising order."""
    if count is None or count >= len(positions):
        return list(positions)
    if count < 1:
        raise ValueError(f"a part of the pool needs at least 1 sample, got {count}")
    drawn = torch.randperm(len(positions), generator=torch.Generator().manual_seed(seed))[:count]
    return sorted(positions[i] for i in drawn.tolist())
