"""The reference: P v = (G + λI)⁻¹ v with the FIM G = 1/n Σ_j vec(g_j) vec(g_j)ᵀ, solved directly in float64.

In sample space (n x n) where there are fewer fit samples than entries, otherwise in parameter space. Keeps every fit
sample's gradient: for small pools and for measuring the other scorers, not for scale.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from vlmsel.checks import check_positive
from vlmsel.scorers.base import GradientScorer, Solved, no_fit_gradient
from vlmsel.scorers.statistics import BlockTargets, KeptGradients, mean_square_norm
from vlmsel.solvers import cholesky, woodbury


@dataclass(frozen=True)
class Exact(GradientScorer):
    """Direct solve.

    Attributes:
        damping: λ relative to the block's mean squared gradient entry.
        name: prefix of its columns.
    """

    damping: float = 0.1
    name: str = "Exact"

    def __post_init__(self) -> None:
        check_positive(damping=self.damping)

    def statistic(self, block: BlockTargets) -> KeptGradients:
        return KeptGradients(block)

    def solve(self, statistic: KeptGradients, v: Float[Tensor, "targets rows cols"]) -> Solved:
        g, count, entries = statistic.take(), statistic.count, statistic.block.entries
        damping = self.damping * mean_square_norm(g) / entries
        details = {"damping": damping, "samples": count}
        if damping == 0:
            return no_fit_gradient(v, **details)
        g, right = g.double(), v.double().flatten(1)
        if count < entries:
            solved = woodbury.solve(g, damping, right)
        else:
            fim = (g.T @ g).div_(count)
            fim.diagonal().add_(damping)
            solved = cholesky.solve(fim, right.T, overwrite=True).T
        return Solved(solved.reshape(v.shape).to(v.dtype), details)

    def solve_bytes(self, block: BlockTargets, samples: int) -> int:
        """Return the bytes of the gradients in float64, four matrices of the system, and the solutions on their way."""
        system, entries, targets = min(samples, block.entries), block.entries, len(block.targets)
        return 8 * (samples * entries + 4 * system**2 + targets * (6 * entries + 4 * system))
