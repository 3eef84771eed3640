"""The inverse of a positive definite matrix by Schulz's iteration (Ben-Israel & Cohen 1966; HyperINF, arXiv 2410.05090).

    X_{k+1} = X_k (2I - A X_k),    I - A X_{k+1} = (I - A X_k)²

It converges for X_0 = 2/(lo + hi)·I whenever lo and hi enclose the spectrum, in about log2(hi/lo) + 5 steps. The published
code starts from 5e-5·I with a fixed number of steps instead, which leaves small eigenvalues far from inverted
(`fixed_steps` repeats it for comparison).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

MAX_STEPS = 100
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}


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


def inverse(a: Tensor, low: float, tolerance: float | None = None, max_steps: int = MAX_STEPS) -> Inverse:
    """Invert a symmetric positive definite matrix [d, d] until ‖I - A X‖_F is below `tolerance`.

    Args:
        a: the matrix, float32 or float64.
        low: a positive lower bound of its spectrum, such as the damping.
        tolerance: 1e-3 in float32 and 1e-9 in float64 when left out.
        max_steps: gives up after so many steps, or earlier when rounding stops the residual from falling.

    Raises:
        ValueError: `low` is not positive.

    >>> inverse(torch.tensor([[2.0, 0.0], [0.0, 4.0]], dtype=torch.float64), low=2.0).matrix.diagonal().tolist()
    [0.5, 0.25]
    """
    if not low > 0:
        raise ValueError(f"Schulz's iteration needs a positive lower bound of the spectrum, got {low}")
    tolerance = TOLERANCE[a.dtype] if tolerance is None else tolerance
    x = torch.eye(len(a), dtype=a.dtype, device=a.device) * (2 / (low + spectrum_bound(a)))
    residuals: list[float] = []
    for _ in range(max_steps):
        product = a @ x
        residuals.append(_residual(product))
        if residuals[-1] <= tolerance:
            return Inverse(x, residuals, True)
        if _stalled(residuals):
            break
        x = 2 * x - x @ product
    return Inverse(x, residuals, False)


def fixed_steps(a: Tensor, start: float, steps: int) -> Inverse:
    """Take `steps` steps from `start`·I, converged or not, as the published code does."""
    x = torch.eye(len(a), dtype=a.dtype, device=a.device) * start
    residuals = []
    for _ in range(steps):
        product = a @ x
        residuals.append(_residual(product))
        x = 2 * x - x @ product
    residuals.append(_residual(a @ x))
    return Inverse(x, residuals, residuals[-1] <= TOLERANCE[a.dtype])


def _residual(product: Tensor) -> float:
    """Return ‖I - product‖_F without forming I."""
    diagonal = product.diagonal()
    off = product.square().sum() - diagonal.square().sum()
    return math.sqrt(max(0.0, float(off + (1 - diagonal).square().sum())))


def _stalled(residuals: list[float]) -> bool:
    """Tell that rounding has the upper hand: below 1 the residual must square itself, or it is not a number."""
    last = residuals[-1]
    return not math.isfinite(last) or (len(residuals) > 1 and residuals[-2] < 0.5 and last > 0.9 * residuals[-2])
