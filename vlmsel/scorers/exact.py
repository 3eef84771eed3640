"""The reference: P v = (G + λI)⁻¹ v with the FIM G = 1/n Σ_j vec(g_j) vec(g_j)ᵀ, solved directly in float64.

In sample space (n x n) where there are fewer fit samples than entries, otherwise in parameter space. Keeps every fit
sample's gradient: for small pools and for measuring the other scorers, not for scale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor

from vlmsel.checks import check_positive
from vlmsel.scorers.base import GradientScorer, Solved, no_fit_gradient
from vlmsel.scorers.statistics import BlockTargets, KeptGradients, mean_square_norm
from vlmsel.solvers import cholesky, spectral, woodbury


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
        details: dict[str, Any] = {"damping": damping, "samples": count}
        if damping == 0:
            return no_fit_gradient(v, **details)
        g, right = g.double(), v.double().flatten(1)
        solve, low = partial(_solve_fim, g, damping, right), damping
        if count < entries:
            solve, low = partial(woodbury.solve, g, damping, right), count * damping
        try:
            solved = solve(cholesky.solve)
        except ValueError:
            details["solver"] = "eigenvectors"
            details["instead"] = "by eigenvectors, for the damping is lost in rounding: raise it"
            solved = solve(partial(spectral.solve, low=low))
        return Solved(solved.reshape(v.shape).to(v.dtype), details)

    def solve_bytes(self, block: BlockTargets, samples: int) -> int:
        """Return the bytes of the gradients in float64, four matrices of the system, and the solutions on their way."""
        system, entries, targets = min(samples, block.entries), block.entries, len(block.targets)
        return 8 * (samples * entries + 4 * system**2 + targets * (6 * entries + 4 * system))


def _solve_fim(g: Tensor, damping: float, right: Tensor, inner: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Solve in parameter space."""
    fim = (g.T @ g).div_(len(g))
    fim.diagonal().add_(damping)
    return inner(fim, right.T).T
