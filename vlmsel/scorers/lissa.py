"""LiSSA (Agarwal et al. 2017; Koh & Liang 2017, arXiv 1703.04730): a scaled Neumann series for (G + λI)⁻¹ v

    r_0 = s v,    r_k = s v + r_{k-1} - s (G + λ) r_{k-1},    G = 1/n Σ_j vec(g_j) vec(g_j)ᵀ,  0 < s < 2/(λ_max(G) + λ)

`batch="full"` keeps the fit gradients and iterates on all of them: exact in the limit of depth, and the default because
it is the series that the papers analyse. `batch="stream"` takes one step per batch of the pass with that batch's G, as
a single stream over a large pool allows, and keeps nothing (Koh & Liang 2017): the choice where the kept gradients
would not fit, at the price of noise. There `depth` says how many batches are used.

Unlike the published mislabel-detection code, which iterates r ← v + r - (G r - λ r), the sign of λ is right and s keeps
the series from exploding; `official()` repeats the published line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from vlmsel.checks import check_choice, check_count, check_flag, check_positive, given
from vlmsel.gradients import Factor
from vlmsel.scorers.base import GradientScorer, Solved, no_fit_gradient
from vlmsel.scorers.statistics import BlockTargets, KeptGradients, State, Statistic, check_damped, mean_square_norm
from vlmsel.solvers import neumann


@dataclass(frozen=True)
class LiSSA(GradientScorer):
    """LiSSA.

    Attributes:
        depth: steps; with batch="stream" the greatest number of batches used.
        damping: λ relative to the block's mean squared gradient entry.
        scale: s; 1/(λ + trace of G), a safe bound, when left out.
        batch: full or stream.
        published: iterate the published line, unscaled and with its sign.
        name: prefix of its columns.
    """

    depth: int = 10
    damping: float = 0.1
    scale: float | None = None
    batch: Literal["full", "stream"] = "full"
    published: bool = False
    name: str = "LiSSA"

    def __post_init__(self) -> None:
        check_count(depth=self.depth)
        check_positive(damping=self.damping, **given(scale=self.scale))
        check_choice(("full", "stream"), batch=self.batch)
        check_flag(published=self.published)
        if self.published and (self.batch == "stream" or self.scale is not None):
            raise ValueError("the published line has no scale and uses all fit samples; leave scale and batch out")

    @classmethod
    def official(cls, damping: float = 0.1, name: str = "LiSSA.official") -> LiSSA:
        """The published mislabel-detection code: 10 steps of r ← v + r - (G r - λ r) from r = v."""
        return cls(damping=damping, published=True, name=name)

    @property
    def needs_mean_square(self) -> bool:
        return self.batch == "stream"

    def statistic(self, block: BlockTargets) -> KeptGradients | Recursion:
        if self.batch == "full":
            return KeptGradients(block)
        return Recursion(block, self.depth, block.damping(self.damping, self.name), self.scale)

    def solve(self, statistic: KeptGradients | Recursion, v: Float[Tensor, "targets rows cols"]) -> Solved:
        if isinstance(statistic, KeptGradients):
            return self._series(statistic, v)
        details = {name: getattr(statistic, name) for name in ("damping", "scale", "steps")}
        details |= {"samples": statistic.count, "batch": "stream"}
        if statistic.damping == 0:
            return no_fit_gradient(v, **details)
        return Solved(statistic.r, details)

    def _series(self, statistic: KeptGradients, v: Tensor) -> Solved:
        """Iterate on all fit samples' gradients."""
        g, count = statistic.take(), statistic.count
        trace = mean_square_norm(g)
        damping = self.damping * trace / statistic.block.entries
        scale = 1.0 if self.published else self.scale or (1 / (trace + damping) if trace else 0.0)
        details: dict[str, Any] = dict(damping=damping, scale=scale, depth=self.depth, samples=count)
        if trace == 0:
            return no_fit_gradient(v, **details)

        def series(scale: float, sign: float) -> Tensor:
            def apply(r: Tensor) -> Tensor:
                return (r @ g.T) @ g / count + sign * damping * r

            return neumann.solve(apply, v.flatten(1), scale, self.depth).reshape(v.shape)

        solved = series(scale, -1.0 if self.published else 1.0)
        if not bool(torch.isfinite(solved).all()):
            hint = "the published line has no scale" if self.published else f"scale {scale:g} is too large"
            details["scale"] = 1 / (trace + damping)
            details["instead"] = (
                f"with scale left out, for the series exploded within {self.depth} steps: {hint}; use LiSSA with scale "
                "left out"
            )
            solved = series(details["scale"], 1.0)
        return Solved(solved, details)

    def solve_bytes(self, block: BlockTargets, samples: int) -> int:
        """Return the bytes of the gradients brought together once more, and of a step of the series."""
        kept = samples if self.batch == "full" else 0
        targets = len(block.targets)
        return block.dtype.itemsize * (kept * block.entries + 2 * targets * kept + 6 * targets * block.entries)


class Recursion(Statistic):
    """r after a step of the series per batch, with the batch's own G. [targets, rows, cols]"""

    ordered = True

    def __init__(self, block: BlockTargets, depth: int, damping: float, scale: float | None) -> None:
        super().__init__(block)
        self.depth, self.damping, self.fixed_scale = depth, damping, scale
        trace = (block.mean_square or 0.0) * block.entries
        self.scale = scale or (1 / (trace + damping) if trace else 0.0)
        self.steps = 0
        self.r = self.scale * block.targets

    @property
    def done(self) -> bool:
        return self.steps == self.depth

    def gather(self, factor: Factor) -> None:
        """Take one step, shortened where the batch's G is above the bound measured before the pass."""
        check_damped(self.damping, factor)
        if not factor.samples:
            return
        scale = self.scale
        if self.fixed_scale is None and self.damping > 0:
            scale = min(scale, 1 / (float(factor.sq_norm().mean()) + self.damping))
        product = factor.weighted_sum(factor.inner(self.r)) / factor.samples + self.damping * self.r
        r = self.r + scale * (self.block.targets - product)
        if self.fixed_scale is not None and not bool(torch.isfinite(r).all()):
            raise ValueError(
                f"the series of LiSSA exploded at batch {self.steps + 1}: scale {scale:g} is too large; use LiSSA with "
                "scale left out"
            )
        self.r = r
        self.steps += 1

    def tensors(self) -> State:
        return {"r": self.r}

    def state(self) -> State:
        return {"steps": torch.tensor(self.steps), **super().state()}

    def load(self, state: State) -> None:
        self.steps, self.r = int(state["steps"]), self.r.clone()
        super().load(state)
