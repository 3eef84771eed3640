"""TracIn: P v = v, the plain inner product of gradients (Pruthi et al. 2020, arXiv 2002.08484; one checkpoint).

With `block_scale` each block is divided by its own mean squared entry, which is what damping far above the spectrum
does to a second-order scorer; much of their gain over plain TracIn comes from this scale alone.

With `cosine` scores are I = -⟨v, g⟩ / (‖v‖ ‖g‖), norms over all blocks together: samples with large gradients, short
and unusual ones, no longer come first by size alone (Pruthi et al. 2020 suggest it; LESS, arXiv 2402.04333, takes the
cosine of Adam's updates in a random projection, here of the gradients themselves).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlmsel.checks import check_flag
from vlmsel.gradients import Factor
from vlmsel.scorers.base import Accumulator, Scorer


@dataclass(frozen=True)
class TracIn(Scorer):
    """First-order influence.

    Attributes:
        block_scale: divide each block by its mean squared gradient entry over the fit samples.
        cosine: divide by the norms of the target's and the sample's gradient; 0 where one of them is 0. It excludes
            `block_scale`, after which neither norm would be that of what is multiplied.
        name: prefix of its columns.
    """

    block_scale: bool = False
    cosine: bool = False
    name: str = "TracIn"

    def __post_init__(self) -> None:
        check_flag(block_scale=self.block_scale, cosine=self.cosine)
        if self.block_scale and self.cosine:
            raise ValueError("cosine divides by norms over all blocks, block_scale by those of each; leave one out")

    @property
    def normalised(self) -> bool:
        return self.cosine

    @property
    def needs_fit(self) -> bool:
        return self.block_scale

    def held_bytes(self, rows: int, cols: int, targets: int, samples: int, itemsize: int = 4) -> int:
        return 8 if self.block_scale else 0

    def accumulator(self, targets: Tensor, mean_square: float | None = None) -> Accumulator:
        return _Scaled(targets) if self.block_scale else _Plain(targets)


class _Plain(Accumulator):
    def update(self, factor: Factor) -> None:
        self.count += factor.samples

    def solve(self) -> Tensor:
        return self.targets

    def state(self) -> dict[str, Tensor]:
        return {"count": torch.tensor(self.count)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.count = int(state["count"])


class _Scaled(Accumulator):
    def __init__(self, targets: Tensor) -> None:
        super().__init__(targets)
        self.squares = targets.new_zeros((), dtype=torch.float64)  # Σ_j ‖g_j‖², on the device so that no update waits

    def update(self, factor: Factor) -> None:
        self.count += factor.samples
        self.squares += factor.sq_norm().double().sum()

    def solve(self) -> Tensor:
        mean_square = float(self.squares) / max(1, self.count * self.entries)
        self.details = {"mean_square": mean_square, "samples": self.count}
        return self.targets / mean_square if mean_square > 0 else torch.zeros_like(self.targets)

    def state(self) -> dict[str, Tensor]:
        return {"count": torch.tensor(self.count), "squares": self.squares}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.count = int(state["count"])
        self.squares.copy_(state["squares"])
