"""HyperINF's h = v (G + λI)⁻¹ from the sum S = n G of a block.

S may lie in other memory than the targets; it is brought to their device for its solution. Solved is v n (S + nλI)⁻¹,
which is the same, for then only the diagonal of S is touched: S is damped in its place, and given its diagonal back. At
most three d × d matrices are alive on the targets' device:

    Schulz, float32 or float64   S, X and the error, and 512 rows
    Cholesky                     S and L
    refinement                   S and X or L, and 64 rows of S in float64
    Cholesky after float32       S and its copy in float64, overwritten by L: as much as three in float32

A `dtype` below that of the gradients adds a copy of S. A solution in float32 is refined by residuals in float64; where
that does not help it is found in float64, and where not even that is positive definite, by eigenvectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vlmsel.scorers.base import Metric, Solved, no_fit_gradient
from vlmsel.scorers.statistics import Gram
from vlmsel.solvers import cholesky, refinement, schulz, spectral

DTYPES = {"float32": torch.float32, "float64": torch.float64}
ROWS = 64  # of S in float64 at a time
ROUGH = 0.5  # ‖I - A X‖ up to which X is good enough to refine by


@dataclass(frozen=True)
class System:
    """One block's system: S + nλI, and n v for its right-hand side.

    Attributes:
        settings: HyperINF's hyper-parameters.
        statistic: what S was gathered by.
        gram: S, damped while it is worked on; None where no fit sample has a gradient.
        v: the targets. [targets, rows, cols]
        shift: nλ.
        details: numbers worth recording.
    """

    settings: Any
    statistic: Gram
    gram: Tensor | None
    v: Tensor
    shift: float
    details: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: Any, statistic: Gram, v: Float[Tensor, "targets rows cols"]) -> System:
        """Set up the system of a block.

        Raises:
            ValueError: the matrix is not finite.
        """
        gram, count = statistic.take(), statistic.count
        trace = float(gram.diagonal().double().sum()) / max(1, count)
        if not math.isfinite(trace):
            raise ValueError(
                f"{settings.name} on a block {list(v.shape[1:])}: the matrix {list(gram.shape)} is not finite; use "
                "HyperINF with dtype='float64'"
            )
        damping = settings.damping * trace / statistic.block.entries
        shift = count * (damping + settings.extra_damping)
        details = {"damping": damping, "samples": count, "curvature": settings.curvature, "side": statistic.side}
        return cls(settings, statistic, None if trace == 0 else gram, v, shift, details)

    @property
    def work(self) -> torch.dtype:
        """The dtype of the solution."""
        assert self.gram is not None
        return DTYPES[self.settings.dtype] if self.settings.dtype else self.gram.dtype

    def right(self, dtype: torch.dtype) -> Float[Tensor, "targets m d"]:
        """Return n v as the rows of a right-hand side; FIM: [targets, 1, rows·cols]."""
        assert self.gram is not None
        rows = self.statistic.block.entries // len(self.gram)
        return self._turned(self.v).reshape(-1, rows, len(self.gram)).to(dtype) * self.statistic.count

    def residual(self, x: Float[Tensor, "targets m d"]) -> Float[Tensor, "targets m d"]:
        """Return n v - x (S + nλI) in float64."""
        assert self.gram is not None
        left = self.right(torch.float64).sub_(x, alpha=self.shift)
        for start in range(0, len(self.gram), ROWS):
            panel = slice(start, start + ROWS)
            left[..., panel] -= x @ self.gram[panel].to(x).T
        return left

    def solved(self, rows: Float[Tensor, "*m d"]) -> Solved:
        """Return h from the rows of the solution."""
        shape = self._turned(self.v).shape
        return Solved(self._turned(rows.to(self.v.dtype).reshape(shape)), self.details)

    def _turned(self, x: Tensor) -> Tensor:
        return x.mT if self.statistic.side == "rows" else x

    def note_bound(self, bound: float) -> None:
        """Record the solver and what bounds the spectrum of S + nλI."""
        self.details.update({"solver": self.settings.solver, "bound": bound / self.statistic.count})

    def note_inverse(self, found: schulz.Inverse) -> None:
        """Record how the iteration went."""
        self.details.update({"residuals": found.residuals, "converged": found.converged})

    @contextmanager
    def damped(self, dtype: torch.dtype) -> Iterator[tuple[Float[Tensor, "d d"], bool]]:
        """Give S + nλI on the targets' device, in the place of S where it lies there in this dtype, and whether it is a
        copy, which may be overwritten; nλ is added in `dtype`, for float32 loses one far below the diagonal. S is
        afterwards what it was."""
        assert self.gram is not None
        a = self.gram.to(device=self.v.device, dtype=dtype)
        copied = a is not self.gram
        diagonal = a.diagonal().clone()
        a.diagonal().add_(self.shift)
        try:
            yield a, copied
        finally:
            if not copied:
                a.diagonal().copy_(diagonal)


def solve(settings: Any, statistic: Gram, v: Float[Tensor, "targets rows cols"]) -> Solved:
    """Return one block's h.

    Raises:
        ValueError: the matrix is not finite.
    """
    system = System.of(settings, statistic, v)
    if system.gram is None:
        return no_fit_gradient(v, **system.details)
    if settings.solver == "cholesky":
        return _by_cholesky(system)
    return _by_schulz(system) or _in_float64(system, "Schulz's iteration did not converge")


def _by_schulz(system: System) -> Solved | None:
    """Solve by Schulz's iteration; None where that does not do."""
    with system.damped(system.work) as (a, _):
        system.note_bound(schulz.spectrum_bound(a))
        if system.settings.start is not None:
            return _published(system, a)
        found = schulz.inverse(a, low=system.shift)
        del a
    return _by_inverse(system, found)


def _published(system: System, a: Tensor) -> Solved | None:
    """Take the published number of steps from start/n·I, for `a` is n times the published matrix; None where they
    explode."""
    own = system.settings
    found = schulz.fixed_steps(a, own.start / system.statistic.count, own.steps)
    system.note_inverse(found)
    if bool(torch.isfinite(found.matrix.sum())):
        return system.solved(system.right(a.dtype) @ found.matrix)
    system.details["instead"] = (
        f"by Cholesky, for Schulz's iteration from {own.start:g}·I exploded: it needs eigenvalues below "
        f"{2 / own.start:g}, those of a block {list(system.v.shape[1:])} may reach {system.details['bound']:g}; use "
        "HyperINF with start and steps left out"
    )
    return None


def _by_inverse(system: System, found: schulz.Inverse) -> Solved | None:
    """Multiply by what the iteration came to, refined where that is float32; None where that does not do."""
    system.note_inverse(found)
    enough = found.converged if system.work == torch.float64 else found.residuals[-1] <= ROUGH
    return _applied(system, lambda rows: rows @ found.matrix) if enough else None


def _applied(system: System, approximate: Callable[[Tensor], Tensor]) -> Solved | None:
    """Return the solution by an inverse, refined where that is in float32; None where refinement does not converge."""
    if system.work == torch.float64:
        return system.solved(approximate(system.right(torch.float64)))
    found = refinement.refine(approximate(system.right(system.work)).double(), system.residual, approximate)
    if found is None:
        return None
    system.details.update({"refinements": found[1], "converged": True})
    return system.solved(found[0])


def _by_cholesky(system: System) -> Solved:
    """Solve directly; in float64 where float32 does not do."""
    if system.work == torch.float64:
        return _in_float64(system)
    with system.damped(system.work) as (a, copied):
        system.note_bound(schulz.spectrum_bound(a))
        try:
            lower = cholesky.factor(a, overwrite=copied)
        except ValueError:
            lower = None
        del a
    solved = None if lower is None else _by_factor(system, lower)
    del lower
    return solved or _in_float64(system, "float32 does not reach the tolerance")


def _by_factor(system: System, lower: Float[Tensor, "d d"]) -> Solved | None:
    """Solve by L; None where that does not do."""

    def substitute(rows: Tensor) -> Tensor:
        return cholesky.substitute(lower, rows.flatten(0, 1).T).T.reshape(rows.shape)

    return _applied(system, substitute)


def _in_float64(system: System, why: str = "") -> Solved:
    """Solve by Cholesky in float64, or by eigenvectors where the matrix is not positive definite even there."""
    if why:
        system.details["solver"] = f"cholesky in float64: {why}"
    with system.damped(torch.float64) as (a, copied):
        if not why:
            system.note_bound(schulz.spectrum_bound(a))
        right = system.right(a.dtype).flatten(0, 1).T
        try:
            return system.solved(cholesky.solve(a, right, overwrite=copied).T)
        except ValueError:
            system.details["solver"] = "eigenvectors in float64"
            system.details["instead"] = (
                f"by eigenvectors, for its sum in {system.statistic.dtype} is rounded by more than λ: raise damping or "
                "use HyperINF with dtype='float64'"
            )
    with system.damped(torch.float64) as (a, _):
        return system.solved(spectral.solve(a, right, system.shift).T)


def metric(settings: Any, statistic: Gram) -> Metric:
    """Return ⟨P g, g⟩ = n ‖L⁻¹ gᵀ‖², with L Lᵀ = S + nλI in float64 whatever the solver, for P = n (S + nλI)⁻¹."""
    system = System.of(settings, statistic, statistic.block.targets)
    if system.gram is None:
        return Metric(scale=0.0)
    dtype = torch.promote_types(statistic.block.targets.dtype, torch.float32)
    scale = system.statistic.count**0.5
    with system.damped(torch.float64) as (a, copied), suppress(ValueError):
        lower = cholesky.factor(a, overwrite=copied)
        return Metric(**_on(statistic, cholesky.inverse_factor(lower, dtype).mul_(scale)), lower=True)
    with system.damped(torch.float64) as (a, _):  # rounding has made it indefinite; its spectrum begins at nλ
        values, vectors = torch.linalg.eigh(a)
        root = vectors.T * (scale / values.clamp_min(max(system.shift, 1e-300)).sqrt())[:, None]
    return Metric(**_on(statistic, root.to(dtype)))


def _on(statistic: Gram, root: Tensor) -> dict[str, Any]:
    return {statistic.side: root}
