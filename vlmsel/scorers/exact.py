"""The reference: P v = (G + λI)⁻¹ v with the FIM G = 1/n Σ_j vec(g_j) vec(g_j)ᵀ, solved directly in float64.

In sample space (n x n) where there are fewer fit samples than entries, otherwise in parameter space. Keeps every fit
sample's gradient: for small pools and for measuring the other scorers, not for scale.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from vlmsel.checks import check_positive
from vlmsel.scorers.base import Accumulator, Scorer
from vlmsel.scorers.statistics import GRADIENTS, KeptGradients, mean_square_norm
from vlmsel.solvers import cholesky, woodbury


@dataclass(frozen=True)
class Exact(Scorer):
    """Direct solve.

    Attributes:
        damping: λ relative to the block's mean squared gradient entry.
        name: prefix of its columns.
    """

    damping: float = 0.1
    name: str = "Exact"

    def __post_init__(self) -> None:
        check_positive(damping=self.damping)

    @property
    def keeps_samples(self) -> bool:
        return True

    @property
    def gathers(self) -> Hashable | None:
        return GRADIENTS

    @property
    def follows_place(self) -> bool:
        return True

    @property
    def holds(self) -> str:
        return "sets of kept gradients"

    def solve_bytes(self, rows: int, cols: int, targets: int, samples: int, itemsize: int = 4) -> int:
        """Return the bytes of the gradients in float64, four matrices of the system, and the solutions on their way."""
        system, entries = min(samples, rows * cols), rows * cols
        return 8 * (samples * entries + 4 * system**2 + targets * (6 * entries + 4 * system))

    def accumulator(self, targets: Tensor, mean_square: float | None = None) -> Accumulator:
        return _Direct(targets, self.damping)


class _Direct(KeptGradients):
    def __init__(self, targets: Tensor, damping: float) -> None:
        super().__init__(targets)
        self.relative = damping

    def solve(self) -> Tensor:
        g = self.take()
        damping = self.relative * mean_square_norm(g) / self.entries
        self.details = {"damping": damping, "samples": self.count}
        if damping == 0:
            return torch.zeros_like(self.targets)  # no fit sample has a gradient here
        g, v = g.double(), self.targets.double().flatten(1)
        if self.count < self.entries:
            solved = woodbury.solve(g, damping, v)
        else:
            fim = (g.T @ g).div_(self.count)
            fim.diagonal().add_(damping)
            solved = cholesky.solve(fim, v.T, overwrite=True).T
        return solved.reshape(self.targets.shape).to(self.targets.dtype)
