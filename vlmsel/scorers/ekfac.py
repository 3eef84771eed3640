"""EK-FAC: K-FAC's eigenbasis with eigenvalues of its own (George et al. 2018, arXiv 1806.03884; for influence: Grosse
et al. 2023, arXiv 2308.03296)

    S = U s Uᵀ,  A = V a Vᵀ  (see kfac.py),    Λ = E[(Uᵀ g V)²] by entry,    P v = U ( (Uᵀ v V) / (Λ + λ) ) Vᵀ
    λ = damping · mean of g² over samples and entries = damping · mean of Λ, for U and V are rotations

Λ is that of whole samples' gradients with their true labels (the cited codes sample labels, and take tokens of a
sequence together likewise). The basis comes from a pass over the fit samples before the curvature pass.
"""

from __future__ import annotations

from dataclasses import dataclass

from vlmsel.checks import check_positive
from vlmsel.scorers.kronecker import Diagonal, KroneckerScorer, RotatedSquares
from vlmsel.scorers.statistics import BlockTargets


@dataclass(frozen=True)
class EKFAC(KroneckerScorer):
    """EK-FAC. It looks at tokens: formed gradients, as in most stores, will not do.

    Attributes:
        damping: λ relative to the block's mean squared gradient entry.
        name: prefix of its columns.
    """

    damping: float = 0.1
    name: str = "EKFAC"

    def __post_init__(self) -> None:
        check_positive(damping=self.damping)

    @property
    def needs_basis(self) -> bool:
        return True

    def statistic(self, block: BlockTargets) -> RotatedSquares:
        if block.basis is None and not block.targets.is_meta:
            raise ValueError(f"{self.name} needs the block's eigenbasis before its first update")
        return RotatedSquares(block)

    def diagonal(self, statistic: RotatedSquares) -> Diagonal:
        values = statistic.total / max(1, statistic.count)
        return Diagonal.of(statistic.basis, values, self.damping * float(values.mean()))
