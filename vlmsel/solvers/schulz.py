"""The inverse of a positive definite matrix by Schulz's iteration (Ben-Israel & Cohen 1966; HyperINF 2410.05090).

    X_{k+1} = X_k (2I - A X_k),    I - A X_{k+1} = (I - A X_k)²

It converges for X_0 = 2/(lo + hi)·I whenever lo and hi enclose the spectrum, in about log2(hi/lo) + 5 steps. The
published code starts from 5e-5·I with a fixed number of steps instead, which leaves small eigenvalues far from inverted
(`fixed_steps` repeats it for comparison).

Three matrices are alive at a time: A, X and the error A X - I. A row of X (A X - I) needs only that row of X, so X is
overwritten a few rows at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}
SPARE_STEPS = 12  # steps allowed beyond log2(hi/lo); about 5 are needed
PANEL = 512  # rows of X overwritten at a time: enough work for one product, an eighth of a matrix of 4096²


class Inverse(NamedTuple):
    """An inverse, the residual ‖I - A X‖ (Frobenius) before every step and at the end, and whether it is one."""

    matrix: Float[Tensor, "d d"]
    residuals: list[float]
    converged: bool


def spectrum_bound(a: Float[Tensor, "d d"]) -> float:
    """Bound the greatest eigenvalue of a positive semi-definite matrix: the smaller of ‖A‖_∞ and the trace.

    >>> spectrum_bound(torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
    3.0
    """
    return spectrum_bounds(a[None])[0]


def spectrum_bounds(a: Float[Tensor, "batch d d"]) -> list[float]:
    """Bound the greatest eigenvalue of each of a batch of matrices, as `spectrum_bound` does."""
    rows = torch.linalg.vector_norm(a, ord=1, dim=2).amax(1)
    return torch.minimum(rows, a.diagonal(dim1=1, dim2=2).sum(1)).tolist()


def inverse(
    a: Float[Tensor, "d d"], low: float, tolerance: float | None = None, max_steps: int | None = None
) -> Inverse:
    """Invert a symmetric positive definite matrix until ‖I - A X‖_F is at most `tolerance`.

    Args:
        a: the matrix, float32 or float64.
        low: a positive lower bound of its spectrum, such as the damping.
        tolerance: 1e-3 in float32 and 1e-9 in float64 when left out.
        max_steps: gives up after so many steps, log2(hi/lo) + 12 when left out; it gives up earlier when rounding keeps
            the residual from falling. `converged` tells.

    Raises:
        ValueError: `low` is not positive.

    >>> found = inverse(torch.tensor([[2.0, 0.0], [0.0, 4.0]], dtype=torch.float64), low=2.0)
    >>> [round(x, 9) for x in found.matrix.diagonal().tolist()], found.converged
    ([0.5, 0.25], True)
    """
    return inverses(a[None], [low], tolerance, max_steps)[0]


def inverses(
    a: Float[Tensor, "batch d d"],
    low: Sequence[float],
    tolerance: float | None = None,
    max_steps: int | None = None,
) -> list[Inverse]:
    """Invert a batch of matrices, each as `inverse` does; one that is done leaves the batch.

    >>> found = inverses(torch.tensor([[[2.0]], [[8.0]]], dtype=torch.float64), low=[2.0, 1.0])
    >>> [round(each.matrix.item(), 9) for each in found]
    [0.5, 0.125]
    """
    if not all(each > 0 for each in low):
        raise ValueError(f"Schulz's iteration needs a positive lower bound of the spectrum, got {min(low)}")
    tolerance = TOLERANCE[a.dtype] if tolerance is None else tolerance
    high = spectrum_bounds(a)
    allowed = [_steps(*ends) if max_steps is None else max_steps for ends in zip(low, high, strict=True)]
    x = _scaled_eyes(a, [2 / (lo + hi) for lo, hi in zip(low, high, strict=True)])
    residuals: list[list[float]] = [[] for _ in low]
    found: dict[int, Inverse] = {}
    active = list(range(len(a)))
    while active:
        error = _error(a, x)
        going = []
        for place, (which, norm) in enumerate(zip(active, _norms(error), strict=True)):
            own = residuals[which]
            own.append(norm)
            if norm <= tolerance or len(own) > allowed[which] or _stalled(own):
                found[which] = Inverse(x[place], own, norm <= tolerance)
            else:
                going.append(place)
        if going and len(going) < len(active):
            a, x, error = a[going], x[going], error[going]
        active = [active[place] for place in going]
        if going:
            _step(x, error)
        del error  # before the next one is made
    return [found[which] for which in range(len(residuals))]


def fixed_steps(a: Float[Tensor, "d d"], start: float, steps: int) -> Inverse:
    """Take `steps` steps from `start`·I, converged or not, as the published code does."""
    a, x = a[None], _scaled_eyes(a[None], [start])
    residuals: list[float] = []
    for _ in range(steps):
        error = _error(a, x)
        residuals += _norms(error)
        _step(x, error)
        del error
    residuals += _norms(_error(a, x))
    return Inverse(x[0], residuals, residuals[-1] <= TOLERANCE[a.dtype])


def _steps(low: float, high: float) -> int:
    ratio = high / low
    return SPARE_STEPS + (math.ceil(math.log2(max(1.0, ratio))) if math.isfinite(ratio) else 0)


def _scaled_eyes(a: Tensor, scales: list[float]) -> Tensor:
    """Return s·I for each scale. [b, d, d]"""
    x = torch.zeros_like(a)
    x.diagonal(dim1=1, dim2=2).copy_(a.new_tensor(scales)[:, None].expand(a.shape[:2]))
    return x


def _error(a: Tensor, x: Tensor) -> Tensor:
    """Return A X - I; subtracted before the norm is taken, for a small norm of two large ones would be rounding."""
    error = a @ x
    error.diagonal(dim1=1, dim2=2).sub_(1)
    return error


def _norms(error: Tensor) -> list[float]:
    return torch.linalg.vector_norm(error, dim=(1, 2)).tolist()


def _step(x: Tensor, error: Tensor) -> None:
    """Overwrite X by X - X (A X - I)."""
    for start in range(0, x.shape[1], PANEL):
        panel = x[:, start : start + PANEL]
        panel -= panel @ error


def _stalled(residuals: list[float]) -> bool:
    """Tell that rounding has the upper hand: below 1 the residual must square itself, or it is not a number."""
    last = residuals[-1]
    return not math.isfinite(last) or (len(residuals) > 1 and residuals[-2] < 0.5 and last > 0.9 * residuals[-2])
