"""TracIn: P v = v, the plain inner product of gradients (Pruthi et al. 2020, arXiv 2002.08484; one checkpoint).

With `block_scale` each block is divided by its own mean squared entry, which is what damping far above the spectrum
does to a second-order scorer; much of their gain over plain TracIn comes from this scale alone.

With `cosine` scores are I = -⟨v, g⟩ / (‖v‖ ‖g‖), norms over all blocks together: samples with large gradients, short
and unusual ones, no longer come first by size alone (Pruthi et al. 2020 suggest it; LESS, arXiv 2402.04333, takes the
cosine of Adam's updates in a random projection, here of the gradients themselves).

With `moments` P = 1 / √v̂ by entry: inner products of a target's gradient with the step that Adam would make of a
sample's (LESS), v̂ its second moments after a warm-up, exact in scores and in the norm ⟨P g, g⟩ (`Adafactor` has the
rank-one form of fit samples' moments instead, and needs no file).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from vlmsel.checks import check_flag
from vlmsel.scorers.base import GradientScorer, Metric, Solved, no_fit_gradient
from vlmsel.scorers.moments import Moments
from vlmsel.scorers.statistics import BlockTargets, SquareSum


@dataclass(frozen=True)
class TracIn(GradientScorer):
    """First-order influence.

    Attributes:
        block_scale: divide each block by its mean squared gradient entry over the fit samples.
        cosine: divide by the norms of the target's and the sample's gradient; 0 where one of them is 0. It excludes
            `block_scale`, after which neither norm would be that of what is multiplied.
        moments: file of Adam's second moments that a warm-up left (`--settings.moments true`), to divide by their
            roots; it excludes both others.
        name: prefix of its columns.
    """

    block_scale: bool = False
    cosine: bool = False
    moments: str = ""
    name: str = "TracIn"

    def __post_init__(self) -> None:
        check_flag(block_scale=self.block_scale, cosine=self.cosine)
        if not isinstance(self.moments, str):
            raise ValueError(f"moments is a path such as RUN/warmup/moments.safetensors, got {self.moments!r}")
        if self.block_scale and self.cosine:
            raise ValueError("cosine divides by norms over all blocks, block_scale by those of each; leave one out")
        if self.moments and (self.block_scale or self.cosine):
            raise ValueError("moments divide by entry, cosine and block_scale by norms; leave one out")

    @property
    def files(self) -> Mapping[str, str]:
        return {"Adam's moments": self.moments} if self.moments else {}

    @property
    def normalised(self) -> bool:
        return self.cosine

    @property
    def first_order(self) -> bool:
        return True

    @property
    def own_norm(self) -> bool:
        return True

    def metric(self, statistic: SquareSum | Moments | None) -> Metric:
        if statistic is None:
            return Metric()
        if isinstance(statistic, Moments):
            return Metric(scale=0.0) if statistic.scale is None else Metric(weights=statistic.scale)
        return Metric(scale=1 / statistic.mean_square if statistic.mean_square > 0 else 0.0)

    def statistic(self, block: BlockTargets) -> SquareSum | Moments | None:
        if self.moments:
            return Moments(block, self.moments)
        return SquareSum(block) if self.block_scale else None

    def solve(self, statistic: SquareSum | Moments | None, v: Float[Tensor, "targets rows cols"]) -> Solved:
        if statistic is None:
            return Solved(v)
        if isinstance(statistic, Moments):
            return no_fit_gradient(v) if statistic.scale is None else Solved(v * statistic.scale)
        mean_square = statistic.mean_square
        details = {"mean_square": mean_square, "samples": statistic.count}
        return Solved(v / mean_square, details) if mean_square > 0 else no_fit_gradient(v, **details)
