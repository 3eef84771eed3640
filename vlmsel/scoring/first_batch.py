"""The first batch of a run: a few short samples, whose captured gradients must be autograd's own (`check_capture`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vlmsel import processes
from vlmsel.data.dataset import SampleDataset
from vlmsel.gradients import Block, check_capture
from vlmsel.gradients.blocks import left_out
from vlmsel.gradients.persample import evaluating
from vlmsel.models.subject import Subject
from vlmsel.scoring.batches import Batching
from vlmsel.scoring.halving import free, out_of_memory

Check = Literal["first-batch", "none"]
SOME = 4096  # samples among which short ones are looked for
TRIES = 8  # samples that are looked at for one with a finite loss


def check_first_batch(
    subject: Subject, blocks: Sequence[Block], data: SampleDataset, batching: Batching, check: Check = "first-batch"
) -> None:
    """Refuse blocks whose gradients would be lost or given to other samples; takes seconds at most.

    Args:
        subject, blocks: whose gradients, and which.
        data: the pool.
        batching: samples are checked one by one where a batch holds one.
        check: "none" does nothing.

    Raises:
        ValueError: names the block, or says that samples depend on each other.
    """
    if check == "none":
        return
    items: list[Any] = []
    try:
        items = [data[position] for position in _first_samples(subject, data)]
        size = min(len(items), batching.max_samples or len(items))
        for start in range(0, len(items), size or 1):
            _check(subject, blocks, items[start : start + size])
    except (RuntimeError, MemoryError) as problem:
        if not out_of_memory(problem):
            raise
        free()
        items = []
    if not items and processes.is_main():
        print("the first batch was not checked: no short sample has a finite loss and room for autograd's gradients")


def tell_left_out(subject: Subject, spec: str | None, blocks: Sequence[Block]) -> None:
    """Say what the blocks lack of what their specification implies."""
    told = left_out(subject.module, spec or subject.default_blocks(), blocks)
    if told and processes.is_main():
        print(told)


def _check(subject: Subject, blocks: Sequence[Block], items: Sequence[Any]) -> None:
    def loss(module: nn.Module, batch: Any) -> Tensor:
        return subject.losses(batch)

    batch, *singles = (subject.collate(own).to(subject.device) for own in (items, *([item] for item in items)))
    check_capture(subject.module, batch, loss, blocks, subject.row_samples(batch), singles)


def _first_samples(subject: Subject, data: SampleDataset) -> list[int]:
    """Return the positions of the shortest sample with pictures, the shortest without, and one that is longer, among
    some thousand."""
    lengths = data.lengths_of(data.candidates()[:SOME])
    order = sorted(lengths, key=lambda i: lengths[i])
    kinds = ([i for i in order if bool(data.samples[i].images) is seen] for seen in (True, False))
    chosen = [found for kind in kinds if (found := _finite(subject, data, kind)) is not None]
    shortest = min((lengths[i] for i in chosen), default=0)
    longer = (i for i in order if i not in chosen and lengths[i] > shortest)
    another = _finite(subject, data, longer)
    return chosen if another is None else [*chosen, another]


@torch.no_grad()
def _finite(subject: Subject, data: SampleDataset, positions: Iterable[int]) -> int | None:
    """Return the first of a few positions whose sample has a finite loss."""
    with evaluating(subject.module):
        for position in islice(positions, TRIES):
            if bool(subject.losses(subject.collate([data[position]]).to(subject.device)).isfinite().all()):
                return position
    return None
