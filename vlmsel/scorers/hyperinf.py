"""HyperINF (Zhou et al. 2024, arXiv 2410.05090): a generalised Fisher matrix, inverted by Schulz's iteration

    GFIM, long side cols:  G = 1/n Σ_j g_jᵀ g_j,   P v = v (G + λI)⁻¹      (lora_A [r, in]: in x in)
    GFIM, long side rows:  G = 1/n Σ_j g_j g_jᵀ,   P v = (G + λI)⁻¹ v      (lora_B [out, r]: out x out)
    FIM:                   G = 1/n Σ_j vec(g_j) vec(g_j)ᵀ                  (small blocks only)
    λ = damping · mean of (g_j)² over samples and entries

Unlike the published code the iteration starts inside its region of fast convergence and runs until it has converged. In
float32 the solution, by either solver, is refined by residuals in float64; where that does not converge the system is
solved by Cholesky in float64, and the details say so.
`official()` and `official_vlm()` repeat the published iterations, which leave small eigenvalues uninverted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from vlmsel.checks import check_choice, check_count, check_positive, given
from vlmsel.scorers import gram_solve
from vlmsel.scorers.base import GradientScorer, Metric, Solved
from vlmsel.scorers.gram_solve import DTYPES
from vlmsel.scorers.statistics import BlockTargets, Gram
from vlmsel.solvers import cholesky, schulz

FIM_ENTRIES = 16384  # the FIM of a block with so many entries takes 1 GiB in float32


@dataclass(frozen=True)
class HyperINF(GradientScorer):
    """HyperINF.

    Attributes:
        damping: λ relative to the block's mean squared gradient entry. The papers' 0.1 inverts eagerly; 10 to 100 was
            the safer choice in studies of mislabelled text. Sweep it.
        curvature: gfim, or fim for small blocks.
        side: which side of the block the GFIM is on: long as in the paper, or short, which is cheaper.
        solver: schulz or cholesky; both give the same inverse.
        dtype: float32 or float64 for the solution, and float64 for the sum of G before it, which then forms every
            gradient; that of the gradients when left out.
        start, steps: fixed number of Schulz steps from start·I, as published; both or neither.
        extra_damping: added to λ.
        name: prefix of its columns.
    """

    damping: float = 0.1
    curvature: Literal["gfim", "fim"] = "gfim"
    side: Literal["long", "short"] = "long"
    solver: Literal["schulz", "cholesky"] = "schulz"
    dtype: Literal["float32", "float64"] | None = None
    start: float | None = None
    steps: int | None = None
    extra_damping: float = 0.0
    name: str = "HyperINF"

    def __post_init__(self) -> None:
        check_positive(damping=self.damping, **given(start=self.start))
        check_count(**given(steps=self.steps))
        check_choice(("gfim", "fim"), curvature=self.curvature)
        check_choice(("long", "short"), side=self.side)
        check_choice(("schulz", "cholesky"), solver=self.solver)
        check_choice((None, *DTYPES), dtype=self.dtype)
        if self.extra_damping != 0:
            check_positive(extra_damping=self.extra_damping)
        if (self.start is None) != (self.steps is None) or (self.steps and self.solver == "cholesky"):
            raise ValueError("start and steps go together, and with solver='schulz'")

    @classmethod
    def official(cls, damping: float = 0.1, name: str = "HyperINF.official") -> HyperINF:
        """The published mislabel-detection code: 30 steps from 5e-5·I and an extra 0.001·I."""
        return cls(damping, start=5e-5, steps=30, extra_damping=1e-3, name=name)

    @classmethod
    def official_vlm(cls, damping: float = 0.1, name: str = "HyperINF.official_vlm") -> HyperINF:
        """The published VLM code: 15 steps from 5e-5·I, which mostly multiply by 1.64 and so rank as TracIn does."""
        return cls(damping, start=5e-5, steps=15, name=name)

    def statistic(self, block: BlockTargets) -> Gram:
        flat = self.curvature == "fim"
        if flat and not block.targets.is_meta:  # a plan counts it, to say what would fit
            _check_fim(block)
        wide = DTYPES["float64"] if self.dtype == "float64" else None
        across = flat or (block.cols >= block.rows) == (self.side == "long")  # the FIM is that of a block of one row
        return Gram(block, "cols" if across else "rows", flat, wide)

    def solve(self, statistic: Gram, v: Float[Tensor, "targets rows cols"]) -> Solved:
        return gram_solve.solve(self, statistic, v)

    def solve_bytes(self, block: BlockTargets, samples: int) -> int:
        """Return the bytes of the matrices beside G and of the right-hand sides on their way."""
        statistic = self.statistic(block)
        d, held = statistic.size, statistic.dtype.itemsize
        work = DTYPES[self.dtype].itemsize if self.dtype else held
        copied = work * d * d if work != held else 0  # else G itself is damped and worked on
        iterates = work * d * (2 * d + min(d, schulz.PANEL))
        if self.solver == "cholesky":
            iterates = work * d * d + 8 * d * min(d, gram_solve.ROWS)
        again = 8 * d * d  # in float64, where float32 does not do, and for the norm
        if self.own_norm:
            again += 3 * 8 * d * min(d, cholesky.COLUMNS)
        batch = held * d * d  # the sum over a batch before it is added
        return max(copied + iterates, again, batch) + 4 * 8 * block.targets.numel()

    @property
    def own_norm(self) -> bool:
        return self.curvature == "gfim" and self.start is None  # published steps may end far from an inverse

    def metric(self, statistic: Gram) -> Metric:
        return gram_solve.metric(self, statistic)

    def metric_bytes(self, block: BlockTargets) -> int:
        return self.statistic(block).size ** 2 * max(4, block.dtype.itemsize) if self.own_norm else 0

    def lighter(self) -> Mapping[str, GradientScorer]:
        gfim, short = replace(self, curvature="gfim"), replace(self, side="short")
        both = replace(gfim, side="short")
        found = {"curvature='gfim'": gfim, "side='short'": short, "curvature='gfim' and side='short'": both}
        return {words: scorer for words, scorer in found.items() if scorer != self}


def _check_fim(block: BlockTargets) -> None:
    if block.entries > FIM_ENTRIES:
        raise ValueError(
            f"the FIM of a block [{block.rows}, {block.cols}] is a matrix of {block.entries}² numbers "
            f"({4 * block.entries**2 / 2**30:,.0f} GiB); the limit is {FIM_ENTRIES} entries: use curvature='gfim' or "
            "choose smaller blocks"
        )
