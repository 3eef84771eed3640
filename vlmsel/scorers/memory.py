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
        scorers: those of one pass; each keeps gradients of its own, or none.
        samples: number of fit samples.
        blocks: name -> (rows, cols).
        limit: the bytes that all of them may keep together.

    Raises:
        ValueError: with the numbers, and how many fit samples would do.

    >>> check_kept([], 1000, {"w": (64, 4096)}, limit=4e9)
    """
    keepers = [scorer.name for scorer in scorers if scorer.keeps_samples]
    each = {block: len(keepers) * kept_bytes(1, *shape) for block, shape in blocks.items()}
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


class KeptGradients(Accumulator):
    """Keeps every fit sample's gradient, flattened."""

    def __init__(self, targets: Tensor) -> None:
        super().__init__(targets)
        self._parts: list[Tensor] = []

    def update(self, factor: Factor) -> None:
        self.count += factor.samples
        self._parts.append(factor.dense().flatten(1).to(self.targets))

    def gradients(self) -> Tensor:
        """Return them all, [n, rows·cols]."""
        parts = [self.targets.new_zeros(0, self.entries), *self._parts]
        self._parts = [torch.cat(parts)]
        return self._parts[0]

    def mean_square_norm(self) -> float:
        """Return 1/n Σ ‖g‖²: the trace of the FIM, which bounds its spectrum."""
        return float(torch.linalg.vector_norm(self.gradients(), dtype=torch.float64)) ** 2 / max(1, self.count)

    def state(self) -> dict[str, Tensor]:
        return {"gradients": self.gradients()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._parts = [state["gradients"].to(self.targets)]
        self.count = len(state["gradients"])
