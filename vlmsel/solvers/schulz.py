"""The inverse of a positive definite matrix by Schulz's iteration (Ben-Israel & Cohen 1966; HyperINF 2410.05090).

    X_{k+1} = X_k (2I - A X_k),    I - A X_{k+1} = (I - A X_k)²

It converges for X_0 = 2/(lo + hi)·I whenever lo and hi enclose the spectrum, in about log2(hi/lo) + 5 steps. The
published code starts from 5e-5·I with a fixed number of steps instead, which leaves small eigenvalues far from inverted
(`fixed_steps` repeats it for comparison).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}
SPARE_STEPS = 12  # steps allowed beyond log2(hi/lo); about 5 are needed


class Inverse(NamedTuple):
    """An inverse [d, d], the residual ‖I - A X‖ (Frobenius) before every step and at the end, and whether it is one."""

    matrix: Tensor
    residuals: list[float]
    converged: bool


def spectrum_bound(a: Tensor) -> float:
    """Bound the greatest eigenvalue of a positive semi-definite matrix: the smaller of ‖A‖_∞ and the trace.

    >>> spectrum_bound(torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
    3.0
    """
    return float(torch.minimum(a.abs().sum(1).max(), a.diagonal().sum()))


def inverse(a: Tensor, low: float, tolerance: float | None = None, max_steps: int | None = None) -> Inverse:
    """Invert a symmetric positive definite matrix [d, d] until ‖I - A X‖_F is at most `tolerance`.

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
    if max_steps is None:
        max_steps = math.ceil(math.log2(max(1.0, high / low))) + SPARE_STEPS
    x = torch.eye(len(a), dtype=a.dtype, device=a.device) * (2 / (low + high))
    residuals: list[float] = []
    for step in range(max_steps + 1):
        error = _error(a, x)
        residuals.append(float(error.norm()))
        if residuals[-1] <= tolerance:
            return Inverse(x, residuals, True)
        if step == max_steps or _stalled(residuals):
            break
        x = x - x @ error
    return Inverse(x, residuals, False)


def fixed_steps(a: Tensor, start: float, steps: int) -> Inverse:
    """Take `steps` steps from `start`·I, converged or not, as the published code does."""
    x = torch.eye(len(a), dtype=a.dtype, device=a.device) * start
    residuals: list[float] = []
    for _ in range(steps):
        error = _error(a, x)
        residuals.append(float(error.norm()))
        x = x - x @ error
    residuals.append(float(_error(a, x).norm()))
    return Inverse(x, residuals, residuals[-1] <= TOLERANCE[a.dtype])


def _error(a: Tensor, x: Tensor) -> Tensor:
    """Return A X - I; subtracted before the norm is taken, for a small norm of two large ones would be rounding."""
    error = a @ x
    error.diagonal().sub_(1)
    return error


def _stalled(residuals: list[float]) -> bool:
    """Tell that rounding has the upper hand: below 1 the residual must square itself, or it is not a number."""
    last = residuals[-1]
    return not math.isfinite(last) or (len(residuals) > 1 and residuals[-2] < 0.5 and last > 0.9 * residuals[-2])
