"""HyperINF's h = v (G + λI)⁻¹ from the sum S = n G of one block, or of several small blocks at once.

S may lie in other memory than the targets; it is brought to their device for its solution. Solved is v n (S + nλI)⁻¹,
which is the same, for then only the diagonal of S is touched: S is damped in its place, and given its diagonal back. At
most three d × d matrices are alive on the targets' device:

    Schulz, float32 or float64   S, X and the error, and 512 rows
    Cholesky                     S and L, and 64 rows of S in float64
    Cholesky after float32       S and its copy in float64, overwritten by L: as much as three in float32

A `dtype` below that of the gradients adds a copy of S. A solution in float32 that one step of refinement would move by
more than `TOLERANCE` is found again in float64; where not even that is positive definite, by eigenvectors.

Small matrices of one size are solved as one batch, for one at a time they are bound by the launching of operations: on
one CPU core 60 matrices of 16² took 1.2 ms together and 21 ms one by one by Schulz's iteration, 0.2 and 1.4 ms by
Cholesky; of 64² 12 and 33 ms, 1.9 and 3.1 ms. From 128² on there is nothing to gain on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vlmsel.scorers.base import Metric, Solved, no_fit_gradient
from vlmsel.scorers.statistics import Gram
from vlmsel.solvers import cholesky, schulz, spectral

DTYPES = {"float32": torch.float32, "float64": torch.float64}
LARGEST, LARGEST_ON_CPU = 512, 64  # d up to which matrices are solved together
ROWS = 64  # of S in float64 at a time
TOLERANCE = 5e-4  # of a solution in float32, relative to its norm
BATCH = 2**22  # entries of a batch: a quarter of one matrix of 4096²


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
        """Set up the system of a block."""
        gram, count = statistic.take(), statistic.count
        trace = float(gram.diagonal().double().sum()) / max(1, count)
        damping = settings.damping * trace / statistic.block.entries
        shift = count * (damping + settings.extra_damping)
        details = {"damping": damping, "samples": count, "curvature": settings.curvature, "side": statistic.side}
        return cls(settings, statistic, None if trace == 0 else gram, v, shift, details)

    @property
    def work(self) -> torch.dtype:
        """The dtype of the solution."""
        assert self.gram is not None
        return DTYPES[self.settings.dtype] if self.settings.dtype else self.gram.dtype

    def right(self, dtype: torch.dtype) -> Float[Tensor, "m d"]:
        """Return n v as the rows of a right-hand side; FIM: [targets, rows·cols]."""
        assert self.gram is not None
        return self._turned(self.v).reshape(-1, len(self.gram)).to(dtype) * self.statistic.count

    def solved(self, rows: Float[Tensor, "m d"]) -> Solved:
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
    with system.damped(system.work) as (a, _):
        system.note_bound(schulz.spectrum_bound(a))
        found = _inverse(system, a)
        if found.converged or (settings.start is not None and "instead" not in system.details):
            return system.solved(system.right(a.dtype) @ found.matrix)
        del a, found
    return _in_float64(system, "Schulz's iteration did not converge")


def _inverse(system: System, a: Tensor) -> schulz.Inverse:
    """Invert until it has converged, or by the published number of steps from start/n·I, for `a` is n times the
    published matrix."""
    own = system.settings
    if own.start is None:
        found = schulz.inverse(a, low=system.shift)
    else:
        found = schulz.fixed_steps(a, own.start / system.statistic.count, own.steps)
        if not bool(torch.isfinite(found.matrix.sum())):
            system.details["instead"] = (
                f"by Cholesky, for Schulz's iteration from {own.start:g}·I exploded: it needs eigenvalues below "
                f"{2 / own.start:g}, those of a block {list(system.v.shape[1:])} may reach "
                f"{system.details['bound']:g}; use HyperINF with start and steps left out"
            )
    system.note_inverse(found)
    return found


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
    if lower is not None:
        x = cholesky.substitute(lower, system.right(system.work).T)
        if _correction(system, lower, x) <= TOLERANCE:
            return system.solved(x.T)
        del lower, x
    return _in_float64(system, "float32 does not reach the tolerance")


def _correction(system: System, lower: Float[Tensor, "d d"], x: Float[Tensor, "d m"]) -> float:
    """Return how far a step of refinement, with the residual in float64, would move the solution of a target at most,
    relative to it: what it is off by."""
    assert system.gram is not None
    wide = x.double()
    left = system.right(torch.float64).T - system.shift * wide
    for start in range(0, len(wide), ROWS):
        panel = slice(start, start + ROWS)
        left[panel] -= system.gram[panel].to(wide) @ wide
    step = cholesky.substitute(lower, left.to(lower))
    moved, size = (torch.linalg.vector_norm(own.T.reshape(len(system.v), -1).double(), dim=1) for own in (step, x))
    return float(torch.where(size > 0, moved / size, moved).nan_to_num(nan=torch.inf).amax()) if len(size) else 0.0


def _in_float64(system: System, why: str = "") -> Solved:
    """Solve by Cholesky in float64, or by eigenvectors where the matrix is not positive definite even there."""
    if why:
        system.details["solver"] = f"cholesky in float64: {why}"
    with system.damped(torch.float64) as (a, copied):
        if not why:
            system.note_bound(schulz.spectrum_bound(a))
        right = system.right(a.dtype).T
        try:
            return system.solved(cholesky.solve(a, right, overwrite=copied).T)
        except ValueError:
            system.details["solver"] = "eigenvectors in float64"
            system.details["instead"] = (
                f"by eigenvectors, for its sum in {system.statistic.dtype} is rounded by more than λ: raise damping or "
                "use HyperINF with dtype='float64'"
            )
    with system.damped(torch.float64) as (a, _):
        try:
            return system.solved(spectral.solve(a, right, system.shift).T)
        except ValueError as problem:
            where = f"{system.settings.name} on a block {list(system.v.shape[1:])}"
            raise ValueError(f"{where}: {problem}; use HyperINF with dtype='float64'") from None


def metric(settings: Any, statistic: Gram) -> Metric:
    """Return ⟨P g, g⟩ = n ‖L⁻¹ gᵀ‖², with L Lᵀ = S + nλI in float64 whatever the solver, for P = n (S + nλI)⁻¹."""
    system = System.of(settings, statistic, statistic.block.targets)
    if system.gram is None:
        return Metric(scale=0.0)
    with system.damped(torch.float64) as (a, _):
        lower, failed = torch.linalg.cholesky_ex(a)
        if bool(failed):  # rounding has made it indefinite; its spectrum begins at nλ
            values, vectors = torch.linalg.eigh(a)
            root = vectors.T / values.clamp_min(max(system.shift, 1e-300)).sqrt()[:, None]
        else:
            identity = torch.eye(len(a), dtype=a.dtype, device=a.device)
            root = torch.linalg.solve_triangular(lower, identity, upper=False)
        root = root * system.statistic.count**0.5
    root = root.to(torch.promote_types(statistic.block.targets.dtype, torch.float32))
    return Metric(**{statistic.side: root}, lower=not failed)


# Several small blocks at once


def solve_many(
    settings: Any, statistics: Sequence[Gram], v: Sequence[Float[Tensor, "targets _rows _cols"]]
) -> list[Solved]:
    """Return each block's h: that of `solve` but for rounding.

    Raises:
        ValueError: as `solve` does.
    """
    groups: dict[Any, list[int]] = {}
    for number, (statistic, own) in enumerate(zip(statistics, v, strict=True)):
        groups.setdefault(_alike(settings, statistic, own) or number, []).append(number)
    solved: dict[int, Solved] = {}
    for group in groups.values():
        step = max(1, BATCH // statistics[group[0]].size ** 2)
        for start in range(0, len(group), step):
            part = group[start : start + step]
            solved.update(zip(part, _solve_part(settings, [(statistics[i], v[i]) for i in part]), strict=True))
    return [solved[number] for number in range(len(statistics))]


def _alike(settings: Any, statistic: Gram, v: Tensor) -> Any:
    """Return what blocks of one batch have in common; None for one to be solved by itself."""
    largest = LARGEST_ON_CPU if v.device.type == "cpu" else LARGEST
    if settings.start is not None or statistic.size > largest:
        return None
    return statistic.size, statistic.dtype, v.device, v.numel()


def _solve_part(settings: Any, pairs: Sequence[tuple[Gram, Tensor]]) -> list[Solved]:
    if len(pairs) == 1:
        return [solve(settings, *pairs[0])]
    systems = [System.of(settings, *pair) for pair in pairs]
    full = [system for system in systems if system.gram is not None]
    solved = iter(_batch(full) if full else [])
    return [no_fit_gradient(one.v, **one.details) if one.gram is None else next(solved) for one in systems]


def _batch(systems: list[System]) -> list[Solved]:
    first = systems[0]
    shifts = [system.shift for system in systems]
    a = torch.stack([system.gram.to(first.v.device, first.work) for system in systems if system.gram is not None])
    a.diagonal(dim1=1, dim2=2).add_(a.new_tensor(shifts)[:, None])
    for system, bound in zip(systems, schulz.spectrum_bounds(a), strict=True):
        system.note_bound(bound)
    if first.settings.solver == "cholesky":
        return _together(a, systems)
    return [_inverted(system, found) for system, found in zip(systems, schulz.inverses(a, shifts), strict=True)]


def _inverted(system: System, found: schulz.Inverse) -> Solved:
    system.note_inverse(found)
    if found.converged:
        return system.solved(system.right(system.work) @ found.matrix)
    return _in_float64(system, "Schulz's iteration did not converge")


def _together(a: Tensor, systems: list[System]) -> list[Solved]:
    right = torch.stack([system.right(a.dtype).T for system in systems])
    try:
        lower = cholesky.factor(a, overwrite=True)
    except ValueError:  # one of them is not positive definite
        return [_by_cholesky(system) for system in systems]
    found = zip(systems, lower, cholesky.substitute(lower, right), strict=True)
    return [
        system.solved(x.T)
        if a.dtype == torch.float64 or _correction(system, own, x) <= TOLERANCE
        else _in_float64(system, "float32 does not reach the tolerance")
        for system, own, x in found
    ]
