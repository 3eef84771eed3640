"""K-FAC (Martens and Grosse 2015, arXiv 1503.05671), for weights that tokens share (Eschenhagen et al. 2023, arXiv
2311.00636)

    FIM ≈ R · S ⊗ A,   S = E[δ δᵀ],   A = E[x xᵀ],   P v = (R · S ⊗ A + λI)⁻¹ v
    λ = damping · mean of g² over samples and entries, as for HyperINF

x is what the layer read at a token, δ the gradient of the sample's own loss at what it gave, E the mean over all tokens
of the fit samples, R the mean number of tokens of a sample. Labels are the true ones, none are sampled from the model:
the empirical Fisher, as for every scorer here. Tokens of a sample are taken to be independent. λ is added to the
eigenvalues of the product; the usual code splits it between the factors.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from vlmsel.checks import check_positive
from vlmsel.scorers.base import Solved
from vlmsel.scorers.kronecker import Diagonal, KroneckerScorer, TokenMoments
from vlmsel.scorers.statistics import BlockTargets


@dataclass(frozen=True)
class KFAC(KroneckerScorer):
    """K-FAC. It looks at tokens: formed gradients, as in most stores, will not do.

    Attributes:
        damping: λ relative to the block's mean squared gradient entry.
        name: prefix of its columns.
    """

    damping: float = 0.1
    name: str = "KFAC"

    def __post_init__(self) -> None:
        check_positive(damping=self.damping)

    def statistic(self, block: BlockTargets) -> TokenMoments:
        return TokenMoments(block)

    def solve(self, statistic: TokenMoments, v: Float[Tensor, "targets rows cols"]) -> Solved:
        found = self.diagonal(statistic)
        return found.solve(v, samples=statistic.count, tokens=statistic.per_sample)

    def diagonal(self, statistic: TokenMoments) -> Diagonal:
        basis = statistic.basis()
        return Diagonal.of(basis, statistic.per_sample * basis.products, self.damping * statistic.mean_square)
