"""The GFIM of both sides at once:

    FIM ≈ R ⊗ C / τ,   R = E[g gᵀ],   C = E[gᵀ g],   τ = E‖g‖²,   P v = (R ⊗ C / τ + λI)⁻¹ v
    λ = damping · mean of g² over samples and entries, as for HyperINF

HyperINF's GFIM takes the shorter side for an identity; this is the Kronecker product whose partial traces are those of
the FIM, which both of HyperINF's sides are. Unlike K-FAC it takes whole gradients, so that tokens of a sample need not
be independent, and a store of formed gradients will do.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from vlmsel.checks import check_positive
from vlmsel.scorers import kronecker
from vlmsel.scorers.base import GradientScorer, Metric, Solved
from vlmsel.scorers.kronecker import Basis, Diagonal, SidedGrams
from vlmsel.scorers.statistics import BlockTargets


@dataclass(frozen=True)
class TwoSided(GradientScorer):
    """Two-sided GFIM.

    Attributes:
        damping: λ relative to the block's mean squared gradient entry.
        name: prefix of its columns.
    """

    damping: float = 0.1
    name: str = "TwoSided"

    def __post_init__(self) -> None:
        check_positive(damping=self.damping)

    def statistic(self, block: BlockTargets) -> SidedGrams:
        return SidedGrams(block)

    def solve(self, statistic: SidedGrams, v: Float[Tensor, "targets rows cols"]) -> Solved:
        damping, found = self._diagonal(statistic)
        return found.solve(v, damping=damping, samples=statistic.count)

    def solve_bytes(self, block: BlockTargets, samples: int) -> int:
        return block.targets.nbytes + kronecker.basis_bytes(block)

    @property
    def own_norm(self) -> bool:
        return True

    def metric(self, statistic: SidedGrams) -> Metric:
        return self._diagonal(statistic)[1].metric(statistic.block)

    def metric_bytes(self, block: BlockTargets) -> int:
        return (block.rows**2 + block.cols**2 + block.entries) * block.dtype.itemsize

    def _diagonal(self, statistic: SidedGrams) -> tuple[float, Diagonal]:
        count = max(1, statistic.count)
        trace = float(statistic.rows.diagonal().double().sum()) / count
        damping = self.damping * trace / statistic.block.entries
        basis = Basis.of(statistic.rows / count, statistic.cols / count)
        return damping, Diagonal.of(basis, basis.products / trace if trace else basis.products, damping)
