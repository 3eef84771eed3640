"""Adafactor: P = 1 / √v̂ by entry, with v̂ the rank-one form of the second moments of the fit samples' gradients.

A model that is tuned by Adam moves along gradients divided by √v̂, not along gradients; LESS (arXiv 2402.04333) takes
inner products after this division. Here v̂_ij = r_i c_j / m as in Adafactor (Shazeer and Stern 2018, arXiv 1804.04235):
r the mean of g² along each row, c along each column, m over the block, over the fit samples at the model that is
scored. For these moments P v is exact, and so is the norm ⟨P g, g⟩, as P scales a gradient's factors by rows and
columns. They are not the optimiser's own moments, which are those of the means of batches.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from vlmsel.checks import check_positive
from vlmsel.scorers.base import GradientScorer, Metric, Solved, no_fit_gradient
from vlmsel.scorers.statistics import BlockTargets, SideSquares


@dataclass(frozen=True)
class Adafactor(GradientScorer):
    """First-order influence of a step that is divided by the root of second moments.

    Attributes:
        floor: rows and columns with less than this share of the block's mean square count as having it.
        name: prefix of its columns.
    """

    floor: float = 1e-6
    name: str = "Adafactor"

    def __post_init__(self) -> None:
        check_positive(floor=self.floor)

    @property
    def own_norm(self) -> bool:
        return True

    def metric(self, statistic: SideSquares) -> Metric:
        sides = self._roots(statistic)
        return Metric(scale=0.0) if sides is None else Metric(sides[0].rsqrt(), sides[1].rsqrt())

    def metric_bytes(self, block: BlockTargets) -> int:
        return (block.rows + block.cols) * block.dtype.itemsize

    def statistic(self, block: BlockTargets) -> SideSquares:
        return SideSquares(block)

    def solve(self, statistic: SideSquares, v: Float[Tensor, "targets rows cols"]) -> Solved:
        details = {"mean_square": statistic.mean_square, "samples": statistic.count}
        sides = self._roots(statistic)
        if sides is None:
            return no_fit_gradient(v, **details)
        rows, cols = (side.to(v) for side in sides)
        return Solved(v / rows[:, None] / cols, details)

    def _roots(self, statistic: SideSquares) -> tuple[Tensor, Tensor] | None:
        """Return √(r / √m) and √(c / √m), whose products are √v̂; None for a block without gradients."""
        mean_square = statistic.mean_square
        if mean_square == 0:
            return None
        block = statistic.block
        rows = statistic.rows / (statistic.count * block.cols)
        cols = statistic.cols / (statistic.count * block.rows)
        root = mean_square**0.5
        found = [(side.clamp_min(self.floor * mean_square) / root).sqrt() for side in (rows, cols)]
        return found[0].to(block.dtype), found[1].to(block.dtype)
