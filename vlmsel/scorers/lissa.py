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

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vlmsel.checks import check_choice, check_count, check_flag, check_positive, given
from vlmsel.gradients import Factor
from vlmsel.scorers.base import Accumulator, Scorer, check_damped, needed
from vlmsel.scorers.statistics import GRADIENTS, KeptGradients, mean_square_norm
from vlmsel.solvers import neumann


@dataclass(frozen=True)
class LiSSA(Scorer):
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
    def keeps_samples(self) -> bool:
        return self.batch == "full"

    @property
    def gathers(self) -> Hashable | None:
        return GRADIENTS if self.keeps_samples else None

    @property
    def needs_mean_square(self) -> bool:
        return self.batch == "stream"

    @property
    def depends_on_batches(self) -> bool:
        return self.batch == "stream"

    @property
    def follows_place(self) -> bool:
        return self.keeps_samples

    @property
    def holds(self) -> str:
        return "sets of kept gradients" if self.keeps_samples else super().holds

    def solve_bytes(self, rows: int, cols: int, targets: int, samples: int, itemsize: int = 4) -> int:
        """Return the bytes of the gradients brought together once more, and of a step of the series."""
        kept = samples if self.keeps_samples else 0
        return itemsize * (kept * rows * cols + 2 * targets * kept + 6 * targets * rows * cols)

    def accumulator(self, targets: Tensor, mean_square: float | None = None) -> Accumulator:
        if self.batch == "full":
            return _Full(targets, self)
        return _Stream(targets, self, needed(mean_square, self.name))


class _Full(KeptGradients):
    def __init__(self, targets: Tensor, settings: LiSSA) -> None:
        super().__init__(targets)
        self.settings = settings

    def solve(self) -> Tensor:
        own, g = self.settings, self.take()
        trace = mean_square_norm(g)
        damping = own.damping * trace / self.entries
        scale = 1.0 if own.published else own.scale or (1 / (trace + damping) if trace else 0.0)
        self.details = {"damping": damping, "scale": scale, "depth": own.depth, "samples": self.count}
        if trace == 0:
            return torch.zeros_like(self.targets)  # no fit sample has a gradient here
        sign = -1.0 if own.published else 1.0

        def apply(r: Tensor) -> Tensor:
            return (r @ g.T) @ g / self.count + sign * damping * r

        solved = neumann.solve(apply, self.targets.flatten(1), scale, own.depth)
        return _finite(solved, own, scale).reshape(self.targets.shape)


def _finite(solved: Tensor, settings: LiSSA, scale: float) -> Tensor:
    """Return the solution unless the series left the range of numbers."""
    if bool(torch.isfinite(solved).all()):
        return solved
    hint = "the published line has no scale" if settings.published else f"scale {scale:g} is too large"
    raise ValueError(f"{settings.name} exploded within {settings.depth} steps: {hint}; use LiSSA with scale left out")


class _Stream(Accumulator):
    def __init__(self, targets: Tensor, settings: LiSSA, mean_square: float) -> None:
        super().__init__(targets)
        self.settings = settings
        self.damping = settings.damping * mean_square
        trace = mean_square * self.entries
        self.scale = settings.scale or (1 / (trace + self.damping) if trace else 0.0)
        self.steps = 0
        self.r = self.scale * self.targets

    @property
    def done(self) -> bool:
        return self.steps == self.settings.depth

    def update(self, factor: Factor) -> None:
        """Take one step with the batch's own G, shortened where that G is above the bound measured before the pass."""
        check_damped(self.damping, factor)
        if self.done or not factor.samples:
            return
        self.count, self.steps = self.count + factor.samples, self.steps + 1
        scale = self.scale
        if self.settings.scale is None and self.damping > 0:
            scale = min(scale, 1 / (float(factor.sq_norm().mean()) + self.damping))
        product = factor.weighted_sum(factor.inner(self.r)) / factor.samples + self.damping * self.r
        self.r = self.r + scale * (self.targets - product)

    def solve(self) -> Tensor:
        self.details = {
            "damping": self.damping,
            "scale": self.scale,
            "steps": self.steps,
            "samples": self.count,
            "batch": "stream",
        }
        if self.damping == 0:
            return torch.zeros_like(self.targets)  # no fit sample has a gradient here
        return _finite(self.r, self.settings, self.scale)

    def state(self) -> dict[str, Tensor]:
        return {"count": torch.tensor(self.count), "steps": torch.tensor(self.steps), "r": self.r}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.count, self.steps = int(state["count"]), int(state["steps"])
        self.r = state["r"].to(self.r)
