"""DataInf (Kwon et al. 2023, arXiv 2310.00902): the order of mean and inverse is swapped, which Sherman-Morrison solves

    P v = 1/λ ( v - 1/n Σ_j ⟨v, g_j⟩ g_j / (λ + ‖g_j‖²) ),    λ = damping · mean of (g_j)² over samples and entries

with flattened inner products, as in the paper (HyperINF's VLM script calls another estimator by this name).
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from vlmsel.checks import check_positive
from vlmsel.scorers.base import GradientScorer, Solved, no_fit_gradient
from vlmsel.scorers.statistics import BlockTargets, Products


@dataclass(frozen=True)
class DataInf(GradientScorer):
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

    def statistic(self, block: BlockTargets) -> Products:
        return Products(block, block.damping(self.damping, self.name))

    def solve(self, statistic: Products, v: Float[Tensor, "targets rows cols"]) -> Solved:
        damping, details = statistic.damping, {"damping": statistic.damping, "samples": statistic.count}
        if damping == 0:
            return no_fit_gradient(v, **details)
        return Solved((v - statistic.total / max(1, statistic.count)) / damping, details)

    def solve_bytes(self, block: BlockTargets, samples: int) -> int:
        return 3 * block.targets.nbytes
