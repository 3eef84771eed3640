"""HyperINF's accumulator: the sum of g gᵀ on one side of a block, and h = v (G + λI)⁻¹ from it.

The sum S = n G may lie in other memory than the targets; it is brought to their device for its solution. Solved is
v n (S + nλI)⁻¹, which is the same, for then only the diagonal of S is touched: S is damped in its place, and given
its diagonal back where float32 does not do. At most three d × d matrices are alive on the targets' device:

    Schulz, float32 or float64   S, X and the error, and 512 rows
    Cholesky                     S, overwritten by L
    Cholesky after float32       S and its copy in float64, overwritten by L: as much as three in float32

A `dtype` below that of the gradients adds a copy of S.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlmsel.gradients import Factor
from vlmsel.scorers.base import Accumulator
from vlmsel.solvers import cholesky, schulz

if TYPE_CHECKING:
    from vlmsel.scorers.hyperinf import HyperINF

DTYPES = {"float32": torch.float32, "float64": torch.float64}


class Curvature(Accumulator):
    """Sums g gᵀ on one side of the block, or vec(g) vec(g)ᵀ as the cols side of a block of one row."""

    def __init__(self, targets: Tensor, settings: HyperINF) -> None:
        super().__init__(targets)
        self.settings = settings
        rows, cols = self.targets.shape[1:]
        self.side, self.size = settings.side_of(rows, cols), settings.size_of(rows, cols)
        self.dtype = torch.float64 if settings.dtype == "float64" else self.targets.dtype
        self.work = DTYPES[settings.dtype] if settings.dtype else self.dtype  # of the solution
        self._gram: Tensor | None = None
        self._taken = False

    @property
    def gram(self) -> Tensor:
        """The sum [d, d], made when it is first needed."""
        if self._taken:
            raise RuntimeError(f"{self.settings.name} was solved on this block, which used up its matrix; gather anew")
        if self._gram is None:
            self._gram = self.zeros((self.size, self.size), self.dtype)
        return self._gram

    def update(self, factor: Factor) -> None:
        self.count += factor.samples
        gram = self.gram
        if self.settings.curvature == "gfim" and factor.values.dtype == gram.dtype:
            gram.add_(factor.gram(self.side).to(gram.device))
        elif gram.device == factor.values.device:
            self._add(factor, gram)
        else:
            batch = factor.values.new_zeros(gram.shape, dtype=gram.dtype)
            self._add(factor, batch)
            gram.add_(batch.to(gram.device))

    def _add(self, factor: Factor, total: Tensor) -> None:
        """Add a batch by formed gradients, cast before they are multiplied: a float64 sum of float32 products is
        float32."""
        for piece in factor.pieces():
            tall = (piece.mT if self.side == "rows" else piece).to(total.dtype).reshape(-1, self.size)
            total.addmm_(tall.T, tall)

    def solve(self) -> Tensor:
        gram, shift = self.take()
        if gram is None:
            return torch.zeros_like(self.targets)  # no fit sample has a gradient here
        own, diagonal = self.settings, gram.diagonal().clone()
        a = self._damped(gram, shift, self.work)
        self.note_bound(schulz.spectrum_bound(a))
        if own.solver == "cholesky":
            return self._direct(a)
        if own.start is not None and own.steps is not None:
            return self.shaped(self.right(self.work) @ self._published(a, own.start, own.steps))
        found = schulz.inverse(a, low=shift)
        self.note_inverse(found)
        if found.converged:
            return self.shaped(self.right(self.work) @ found.matrix)
        del a, found
        gram.diagonal().copy_(diagonal)
        return self.solve_in_float64(gram, shift)

    def take(self) -> tuple[Tensor | None, float]:
        """Hand over S, None where no sample has a gradient, and nλ; the accumulator is used up."""
        own, gram = self.settings, self.gram
        trace = float(gram.diagonal().double().sum()) / max(1, self.count)
        damping = own.damping * trace / self.entries
        self.details = {"damping": damping, "samples": self.count, "curvature": own.curvature, "side": self.side}
        self._gram, self._taken = None, True
        return (None if trace == 0 else gram), self.count * (damping + own.extra_damping)

    def right(self, dtype: torch.dtype) -> Tensor:
        """Return n v as the rows of a right-hand side, [m, d]; FIM: [k, rows·cols]."""
        return self._turned(self.targets).reshape(-1, self.size).to(dtype) * self.count

    def shaped(self, solved: Tensor) -> Tensor:
        """Return h from the rows of the solution [m, d]."""
        shape = self._turned(self.targets).shape
        return self._turned(solved.to(self.targets.dtype).reshape(shape))

    def _turned(self, x: Tensor) -> Tensor:
        return x.mT if self.side == "rows" else x

    def note_bound(self, bound: float) -> None:
        """Record the solver and what bounds the spectrum of S + nλI."""
        self.details |= {"solver": self.settings.solver, "bound": bound / self.count}

    def note_inverse(self, found: schulz.Inverse) -> None:
        """Record how the iteration went."""
        self.details |= {"residuals": found.residuals, "converged": found.converged}

    def _damped(self, gram: Tensor, shift: float, dtype: torch.dtype) -> Tensor:
        """Return S + nλI on the targets' device, in the place of S where it lies there; nλ is added in `dtype`, for
        float32 loses one far below the diagonal."""
        a = gram.to(device=self.targets.device, dtype=dtype)
        a.diagonal().add_(shift)
        return a

    def solve_in_float64(self, gram: Tensor, shift: float) -> Tensor:
        """Return h by Cholesky, where Schulz's iteration did not converge."""
        self.details["solver"] = "cholesky in float64: Schulz's iteration did not converge"
        return self._direct(self._damped(gram, shift, torch.float64))

    def solve_directly(self, gram: Tensor, shift: float) -> Tensor:
        """Return h by Cholesky in the dtype of the solution."""
        return self._direct(self._damped(gram, shift, self.work))

    def _direct(self, a: Tensor) -> Tensor:
        try:
            return self.shaped(cholesky.solve(a, self.right(a.dtype).T, overwrite=True).T)
        except ValueError as problem:
            where = f"{self.settings.name} on a block {list(self.targets.shape[1:])}"
            raise ValueError(f"{where}: {problem}, or use HyperINF with dtype='float64'") from None

    def _published(self, a: Tensor, start: float, steps: int) -> Tensor:
        """Return what so many steps make of the inverse; from start/n·I, for `a` is n times the published matrix."""
        found = schulz.fixed_steps(a, start / self.count, steps)
        if not bool(torch.isfinite(found.matrix.sum())):
            raise ValueError(
                f"{self.settings.name} exploded: Schulz's iteration from {start:g}·I needs eigenvalues below "
                f"{2 / start:g}, those of a block {list(self.targets.shape[1:])} may reach "
                f"{self.details['bound']:g}; use HyperINF with start and steps left out"
            )
        self.note_inverse(found)
        return found.matrix

    def state(self) -> dict[str, Tensor]:
        return {"count": torch.tensor(self.count), "gram": self.gram}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.count = int(state["count"])
        self.gram.copy_(state["gram"])
