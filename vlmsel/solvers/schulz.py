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
    rows = torch.linalg.vector_norm(a, ord=1, dim=1).amax()
    return float(torch.minimum(rows, a.diagonal().sum()))


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
    if not low > 0:
        raise ValueError(f"Schulz's iteration needs a positive lower bound of the spectrum, got {low}")
    tolerance = TOLERANCE[a.dtype] if tolerance is None else tolerance
    high = spectrum_bound(a)
    allowed = _steps(low, high) if max_steps is None else max_steps
    x, residuals = _scaled_eye(a, 2 / (low + high)), list[float]()
    while True:
        error = _error(a, x)
        residuals.append(_norm(error))
        if residuals[-1] <= tolerance or len(residuals) > allowed or _stalled(residuals):
            return Inverse(x, residuals, residuals[-1] <= tolerance)
        _step(x, error)
        del error  # before the next one is made


def fixed_steps(a: Float[Tensor, "d d"], start: float, steps: int) -> Inverse:
    """Take `steps` steps from `start`·I, converged or not, as the published code does."""
    x, residuals = _scaled_eye(a, start), list[float]()
    for _ in range(steps):
        error = _error(a, x)
        residuals.append(_norm(error))
        _step(x, error)
        del error
    residuals.append(_norm(_error(a, x)))
    return Inverse(x, residuals, residuals[-1] <= TOLERANCE[a.dtype])


def _steps(low: float, high: float) -> int:
    ratio = high / low
    return SPARE_STEPS + (math.ceil(math.log2(max(1.0, ratio))) if math.isfinite(ratio) else 0)


def _scaled_eye(a: Tensor, scale: float) -> Tensor:
    x = torch.zeros_like(a)
    x.fill_diagonal_(scale)
    return x


def _error(a: Tensor, x: Tensor) -> Tensor:
    """Return A X - I; subtracted before the norm is taken, for a small norm of two large ones would be rounding."""
    error = a @ x
    error.diagonal().sub_(1)
    return error


def _norm(error: Tensor) -> float:
    return float(torch.linalg.matrix_norm(error))


def _step(x: Tensor, error: Tensor) -> None:
    """Overwrite X by X - X (A X - I)."""
    for panel in x.split(PANEL):
        panel -= panel @ error


def _stalled(residuals: list[float]) -> bool:
    """Tell that rounding has the upper hand: below 1 the residual must square itself, or it is not a number."""
    last = residuals[-1]
    return not math.isfinite(last) or (len(residuals) > 1 and residuals[-2] < 0.5 and last > 0.9 * residuals[-2])
