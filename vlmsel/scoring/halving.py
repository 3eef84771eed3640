"""Batches that do not fit into memory are worked on in halves, and later ones are made no larger than what did fit.

A sample that does not fit alone is given up with a reason. Halving changes nothing else: a sample's gradient is what it
would be alone.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from vlmsel import processes

T = TypeVar("T")


def out_of_memory(problem: BaseException) -> bool:
    """Tell whether an error says that memory ran out, on a GPU or on the CPU."""
    if isinstance(problem, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(problem)
    return isinstance(problem, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


@dataclass
class Budget:
    """The most padded tokens in a batch, once it is known that more do not fit."""

    tokens: int | None = None

    def lower(self, batch: Any) -> None:
        """Allow half of what did not fit."""
        self.tokens = max(1, batch.input_ids.numel() // 2)
        if processes.is_main():
            print(
                f"out of memory on a batch of {len(batch.uids)} samples and {batch.input_ids.numel()} tokens; going on "
                f"with at most {self.tokens} tokens per batch"
            )

    def exceeded(self, batch: Any) -> bool:
        """Tell whether a batch is better halved before it is tried."""
        return self.tokens is not None and len(batch.uids) > 1 and batch.input_ids.numel() > self.tokens


def in_pieces(
    batch: Any, work: Callable[[Any], T], give_up: Callable[[Any], T], budget: Budget
) -> Iterator[tuple[Any, T]]:
    """Work on a batch, in halves where it does not fit; yield each piece with its result, in the order of the samples.

    Args:
        batch: with `halves()`, `uids` and `input_ids`.
        work: must have changed nothing when it runs out of memory.
        give_up: what is done with a single sample that does not fit.
        budget: lowered where memory runs out.
    """
    if not budget.exceeded(batch):
        try:
            result = work(batch)
        except (RuntimeError, MemoryError) as problem:
            if not out_of_memory(problem):
                raise
        else:
            yield batch, result
            return
        free()  # here, where the failed attempt's tensors are out of reach
        if len(batch.uids) == 1:
            yield batch, give_up(batch)
            return
        budget.lower(batch)
    for half in batch.halves():
        yield from in_pieces(half, work, give_up, budget)


def free() -> None:
    """Give back memory that nothing holds on to."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
