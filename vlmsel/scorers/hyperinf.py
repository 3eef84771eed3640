"""HyperINF (Zhou et al. 2024, arXiv 2410.05090): a generalised Fisher matrix, inverted by Schulz's iteration

    GFIM, long side cols:  G = 1/n Σ_j g_jᵀ g_j,   P v = v (G + λI)⁻¹      (lora_A [r, in]: in x in)
    GFIM, long side rows:  G = 1/n Σ_j g_j g_jᵀ,   P v = (G + λI)⁻¹ v      (lora_B [out, r]: out x out)
    FIM:                   G = 1/n Σ_j vec(g_j) vec(g_j)ᵀ                  (small blocks only)
    λ = damping · mean of (g_j)² over samples and entries

Unlike the published code the iteration starts inside its region of fast convergence and runs until it has converged;
where float32 cannot reach the tolerance, the system is solved by Cholesky in float64 and the details say so.
`official()` and `official_vlm()` repeat the published iterations, which leave small eigenvalues uninverted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vlmsel.gradients import Factor
from vlmsel.scorers.base import Accumulator, Scorer, check_choice, check_count, check_positive, given
from vlmsel.solvers import cholesky, schulz

FIM_ENTRIES = 16384  # the FIM of a block with so many entries takes 1 GiB in float32
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class HyperINF(Scorer):
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

    def accumulator(self, targets: Tensor, mean_square: float | None = None) -> Accumulator:
        return _Curvature(targets, self)


class _Curvature(Accumulator):
    """Sums g gᵀ on one side of the block, or vec(g) vec(g)ᵀ as the cols side of a block of one row."""

    def __init__(self, targets: Tensor, settings: HyperINF) -> None:
        super().__init__(targets)
        self.settings = settings
        rows, cols = self.targets.shape[1:]
        self.side: Literal["cols", "rows"] = "cols" if (cols >= rows) == (settings.side == "long") else "rows"
        if settings.curvature == "fim":
            _check_fim(rows, cols)
            self.side = "cols"
        size = self.entries if settings.curvature == "fim" else {"cols": cols, "rows": rows}[self.side]
        dtype = torch.float64 if settings.dtype == "float64" else self.targets.dtype
        self.gram = self.targets.new_zeros(size, size, dtype=dtype)

    def update(self, factor: Factor) -> None:
        self.count += factor.samples
        if self.settings.curvature == "gfim" and factor.values.dtype == self.gram.dtype:
            self.gram += factor.gram(self.side)
            return
        for piece in factor.pieces():  # cast before they are multiplied: a float64 sum of float32 products is float32
            self._add(piece.to(self.gram))

    def _add(self, piece: Tensor) -> None:
        """Add formed gradients [some, rows, cols]."""
        tall = (piece.mT if self.side == "rows" else piece).reshape(-1, len(self.gram))
        self.gram.addmm_(tall.T, tall)

    def solve(self) -> Tensor:
        own, trace = self.settings, float(self.gram.diagonal().double().sum()) / max(1, self.count)
        damping = own.damping * trace / self.entries
        self.details = {"damping": damping, "samples": self.count, "curvature": own.curvature, "side": self.side}
        if trace == 0:
            return torch.zeros_like(self.targets)  # no fit sample has a gradient here
        tall = self.targets.mT if self.side == "rows" else self.targets  # [k, other, size]
        flat = tall.reshape(-1, len(self.gram))  # FIM: [k, rows·cols]
        solved = self._solve(damping + own.extra_damping, flat).to(self.targets.dtype).reshape(tall.shape)
        return solved.mT if self.side == "rows" else solved

    def _damped(self, damping: float, dtype: torch.dtype) -> Tensor:
        """Return A = G + λI; λ is added in `dtype`, for float32 loses a λ far below the diagonal."""
        a = self.gram.to(dtype) / self.count
        a.diagonal().add_(damping)
        return a

    def _solve(self, damping: float, b: Tensor) -> Tensor:
        """Return b A⁻¹ for b [m, d]."""
        own = self.settings
        a = self._damped(damping, DTYPES[own.dtype] if own.dtype else self.gram.dtype)
        self.details |= {"solver": own.solver, "bound": schulz.spectrum_bound(a)}
        if own.solver == "cholesky":
            return self._direct(a, b)
        if own.start is not None and own.steps is not None:
            return b.to(a.dtype) @ self._published(a, own.start, own.steps)
        found = schulz.inverse(a, low=damping)
        self.details |= {"residuals": found.residuals, "converged": found.converged}
        if found.converged:
            return b.to(a.dtype) @ found.matrix
        self.details["solver"] = "cholesky in float64: Schulz's iteration did not converge"
        del a, found
        return self._direct(self._damped(damping, torch.float64), b)

    def _direct(self, a: Tensor, b: Tensor) -> Tensor:
        try:
            return cholesky.solve(a, b.T.to(a.dtype)).T
        except ValueError as problem:
            where = f"{self.settings.name} on a block {list(self.targets.shape[1:])}"
            raise ValueError(f"{where}: {problem}, or use HyperINF with dtype='float64'") from None

    def _published(self, a: Tensor, start: float, steps: int) -> Tensor:
        """Return what so many steps make of the inverse."""
        found = schulz.fixed_steps(a, start, steps)
        if not bool(torch.isfinite(found.matrix).all()):
            raise ValueError(
                f"{self.settings.name} exploded: Schulz's iteration from {start:g}·I needs eigenvalues below "
                f"{2 / start:g}, those of a block {list(self.targets.shape[1:])} may reach "
                f"{self.details['bound']:g}; use HyperINF with start and steps left out"
            )
        self.details |= {"residuals": found.residuals, "converged": found.converged}
        return found.matrix

    def state(self) -> dict[str, Tensor]:
        return {"count": torch.tensor(self.count), "gram": self.gram}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.count = int(state["count"])
        self.gram.copy_(state["gram"])


def _check_fim(rows: int, cols: int) -> None:
    entries = rows * cols
    if entries > FIM_ENTRIES:
        raise ValueError(
            f"the FIM of a block [{rows}, {cols}] is a matrix of {entries}² numbers "
            f"({4 * entries**2 / 2**30:,.0f} GiB); the limit is {FIM_ENTRIES} entries: use curvature='gfim' or choose "
            "smaller blocks"
        )
