"""DataInf (Kwon et al. 2023, arXiv 2310.00902): the order of mean and inverse is swapped, which Sherman-Morrison solves

    P v = 1/λ ( v - 1/n Σ_j ⟨v, g_j⟩ g_j / (λ + ‖g_j‖²) ),    λ = damping · mean of (g_j)² over samples and entries

with flattened inner products, as in the paper (HyperINF's VLM script calls another estimator by this name).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlmsel.checks import check_positive
from vlmsel.gradients import Factor
from vlmsel.scorers.base import Accumulator, Scorer, check_damped, needed
from vlmsel.solvers import sherman_morrison


@dataclass(frozen=True)
class DataInf(Scorer):
    """DataInf.

    Attributes:
        damping: λ relative to the block's mean squared gradient entry.
        name: prefix of its columns.
    """

    damping: float = 0.1
    name: str = "DataInf"

    def __post_init__(self) -> None:
        check_positive(damping=self.damping)

    @property
    def needs_mean_square(self) -> bool:
        return True

    def solve_bytes(self, rows: int, cols: int, targets: int, samples: int, itemsize: int = 4) -> int:
        return 3 * itemsize * rows * cols * targets

    def accumulator(self, targets: Tensor, mean_square: float | None = None) -> Accumulator:
        return _Swapped(targets, self.damping * needed(mean_square, self.name))


class _Swapped(Accumulator):
    def __init__(self, targets: Tensor, damping: float) -> None:
        super().__init__(targets)
        self.damping = damping
        self.total = torch.zeros_like(self.targets)  # Σ_j ⟨v, g_j⟩ g_j / (λ + ‖g_j‖²)

    def update(self, factor: Factor) -> None:
        check_damped(self.damping, factor)
        self.count += factor.samples
        weights = sherman_morrison.weights(factor.inner(self.targets), factor.sq_norm(), self.damping)
        self.total += factor.weighted_sum(weights)

    def solve(self) -> Tensor:
        self.details = {"damping": self.damping, "samples": self.count}
        if self.damping == 0:
            return torch.zeros_like(self.targets)  # no fit sample has a gradient here
        return (self.targets - self.total / max(1, self.count)) / self.damping

    def state(self) -> dict[str, Tensor]:
        return {"count": torch.tensor(self.count), "total": self.total}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.count = int(state["count"])
        self.total.copy_(state["total"])
