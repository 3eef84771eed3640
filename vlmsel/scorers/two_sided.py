"""The GFIM of both sides at once:

    FIM ≈ R ⊗ C / τ,   R = E[g gᵀ],   C = E[gᵀ g],   τ = E‖g‖²,   P v = (R ⊗ C / τ + λI)⁻¹ v
    λ = damping · mean of g² over samples and entries, as for HyperINF

HyperINF's GFIM takes the shorter side for an identity; this is the Kronecker product whose partial traces are those of
the FIM, which both of HyperINF's sides are. Unlike K-FAC it takes whole gradients, so that tokens of a sample need not
be independent, and a store of formed gradients will do.
"""

from __future__ import annotations

from dataclasses import dataclass

from vlmsel.checks import check_positive
from vlmsel.scorers.kronecker import Basis, Diagonal, KroneckerScorer, SidedGrams
from vlmsel.scorers.statistics import BlockTargets


@dataclass(frozen=True)
class TwoSided(KroneckerScorer):
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

    def diagonal(self, statistic: SidedGrams) -> Diagonal:
        count = max(1, statistic.count)
        trace = float(statistic.rows.diagonal().double().sum()) / count
        damping = self.damping * trace / statistic.block.entries
        basis = Basis.of(statistic.rows / count, statistic.cols / count)
        return Diagonal.of(basis, basis.products / trace if trace else basis.products, damping)
