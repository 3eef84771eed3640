"""Fit samples' gradients kept in memory, for the scorers that are exact only with all of them at hand.

They take 4·n·rows·cols bytes per block: 134 MB for one sample of a 7B model with LoRA r = 64 on queries and values. So
callers ask `check_kept` before a pass rather than find out in its middle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vlmsel.gradients import Factor
from vlmsel.scorers.base import Accumulator, Scorer


def kept_bytes(samples: int, rows: int, cols: int, itemsize: int = 4) -> int:
    """Return the bytes that the gradients of `samples` fit samples take on one block.

    >>> kept_bytes(1000, 64, 4096)
    1048576000
    """
    return itemsize * samples * rows * cols


def check_kept(scorers: Sequence[Scorer], samples: int, blocks: Mapping[str, tuple[int, int]], limit: float) -> None:
    """Refuse scorers that would keep more of the gradients of `samples` fit samples than fit.

    Args:
        scorers: those of one pass; those that keep gradients share them.
        samples: number of fit samples.
        blocks: name -> (rows, cols).
        limit: the bytes that all of them may keep together.

    Raises:
        ValueError: with the numbers, and how many fit samples would do.

    >>> check_kept([], 1000, {"w": (64, 4096)}, limit=4e9)
    """
    keepers = [scorer.name for scorer in scorers if scorer.keeps_samples]
    sets = min(2, len(keepers))  # one set serves all, and a copy of it is solved
    each = {block: sets * kept_bytes(1, *shape) for block, shape in blocks.items()}
    needs = samples * sum(each.values())
    if needs <= limit:
        return
    largest = max(each, key=lambda block: each[block])
    shape, fits = list(blocks[largest]), int(limit // sum(each.values()))
    mend = f"use fit_samples={fits} or fewer, " if fits else ""
    raise ValueError(
        f"{', '.join(keepers)} would keep every fit sample's gradient: {needs / 1e9:.3g} GB for {samples} fit samples "
        f"on {len(each)} blocks (limit {limit / 1e9:g} GB), the largest of them {largest} {shape}; {mend}choose fewer "
        "blocks, or a scorer that streams, such as LiSSA(batch='stream') or HyperINF"
    )


GRADIENTS = "gradients"  # what `Scorer.gathers` says of scorers with such an accumulator


class KeptGradients(Accumulator):
    """Keeps every fit sample's gradient, flattened, in tensors that `zeros` makes."""

    def __init__(self, targets: Tensor) -> None:
        super().__init__(targets)
        self._parts: list[Tensor] = []
        self._taken = False

    def update(self, factor: Factor) -> None:
        self.count += factor.samples
        self._gathered().append(self._placed([factor.dense().flatten(1)]))

    def _placed(self, parts: list[Tensor]) -> Tensor:
        """Copy parts [some, rows·cols] into one tensor where gradients are kept."""
        return _filled(self.zeros((sum(map(len, parts)), self.entries), self.targets.dtype), parts)

    def take(self) -> Tensor:
        """Hand over all gradients on the targets' device, [n, rows·cols]; the accumulator is used up."""
        parts, self._taken = self._gathered(), True
        self._parts = []
        if len(parts) == 1 and parts[0].device == self.targets.device:
            return parts[0]
        return _filled(self.targets.new_empty(sum(map(len, parts)), self.entries), parts)

    def _gathered(self) -> list[Tensor]:
        if self._taken:
            raise RuntimeError("a block was solved, which used up the gradients kept for it; gather anew")
        return self._parts

    def state(self) -> dict[str, Tensor]:
        if len(self._gathered()) != 1:
            self._parts = [self._placed(self._parts)]
        return {"gradients": self._parts[0]}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._parts = [self._placed([state["gradients"]])]
        self.count = len(state["gradients"])


def mean_square_norm(gradients: Tensor) -> float:
    """Return 1/n Σ ‖g‖², the trace of the FIM, which bounds its spectrum; 0 for no gradient.

    >>> mean_square_norm(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    12.5
    """
    parts = gradients.split(16)  # a few at a time, for they are copied to float64
    total = sum(torch.linalg.vector_norm(part, dtype=torch.float64).square() for part in parts)
    return float(total) / max(1, len(gradients))


def _filled(whole: Tensor, parts: list[Tensor]) -> Tensor:
    start = 0
    for part in parts:
        whole[start : start + len(part)].copy_(part)
        start += len(part)
    return whole
