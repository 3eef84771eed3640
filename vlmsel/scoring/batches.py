"""Batches of chosen samples of a data set, of like length together, in an order that the configuration alone decides.

Several processes share a plan by dealing its batches, or its chunks of batches, in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from vlmsel import processes


@dataclass(frozen=True)
class BatchPlan:
    """Which samples come in which batch.

    Attributes:
        data: gives one encoded sample per position.
        collate: makes a batch, with `to(device)`, of a list of them.
        groups: the positions of each batch.
        device: where batches go.
        workers: processes that read samples.
    """

    data: Dataset[Any]
    collate: Callable[[list[Any]], Any]
    groups: Sequence[Sequence[int]]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    workers: int = 0

    @property
    def sizes(self) -> list[int]:
        """Samples per batch."""
        return [len(group) for group in self.groups]

    def dealt(self) -> BatchPlan:
        """Return the batches that are this process's among several: every so manieth."""
        return replace(self, groups=self.groups[processes.rank() :: processes.count()])

    def batches(self, start: int = 0, stop: int | None = None) -> Iterator[Any]:
        """Give the batches from `start` to before `stop`."""
        groups = [list(group) for group in self.groups[start:stop]]
        loader = DataLoader(self.data, batch_sampler=groups, collate_fn=self.collate, num_workers=self.workers)  # type: ignore[arg-type]
        for batch in loader:
            yield batch.to(self.device)

    def shown(self, what: str, start: int = 0) -> Iterator[Any]:
        """Give the batches from `start` on under a progress bar in samples."""
        done, total = sum(self.sizes[:start]), sum(self.sizes)
        quiet = not processes.is_main()
        with tqdm(
            total=total, initial=done, desc=what, unit="sample", delay=2, dynamic_ncols=True, disable=quiet
        ) as bar:
            for size, batch in zip(self.sizes[start:], self.batches(start), strict=True):
                yield batch
                bar.update(size)


def seeded_part(positions: Sequence[int], count: int | None, seed: int) -> list[int]:
    """Draw `count` of the positions without repetition (all when None or more than there are), in rising order."""
    if count is None or count >= len(positions):
        return list(positions)
    if count < 1:
        raise ValueError(f"a part of the pool needs at least 1 sample, got {count}")
    drawn = torch.randperm(len(positions), generator=torch.Generator().manual_seed(seed))[:count]
    return sorted(positions[i] for i in drawn.tolist())
