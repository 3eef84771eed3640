"""Iterative refinement (Wilkinson 1963; mixed precision: Carson & Higham 2018): float32 work, a float64 solution.

    x ← x + B (b - A x),   B ≈ A⁻¹ in float32, the residual in float64

The error shrinks by ‖I - B A‖ a step, whatever rounding has left in B: one or two steps give all digits of float32, and
a B that is good to one digit is good enough. A step is two products of a matrix with the right-hand sides, not of d³.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

TOLERANCE = 1e-5  # of the last step, relative to the solution: what is off after it is less than half of that
STEPS = 10


def refine(
    x: Float[Tensor, "targets m d"],
    residual: Callable[[Tensor], Tensor],
    approximate: Callable[[Tensor], Tensor],
) -> tuple[Float[Tensor, "targets m d"], int] | None:
    """Return the solution in float64 and the number of steps; None where a step is not at most half of the one before.

    Args:
        x: B b in float64, overwritten; the steps of each target are measured by its own norm.
        residual: x -> b - A x, in float64.
        approximate: r -> B r, in float32.

    >>> x, steps = refine(torch.ones(1, 1, 1).double(), lambda x: 6 - 3 * x, lambda r: 0.33 * r)
    >>> round(x.item(), 6), steps
    (2.0, 4)
    """
    before = torch.inf
    for count in range(1, STEPS + 1):
        step = approximate(residual(x).float())
        moved, size = (torch.linalg.vector_norm(own, dim=(1, 2), dtype=x.dtype) for own in (step, x))
        largest = float(torch.where(size > 0, moved / size, moved).nan_to_num(nan=torch.inf).max()) if len(x) else 0.0
        if not largest <= before / 2:
            return None
        x += step
        del step  # before the next one is made
        if largest <= TOLERANCE:
            return x, count
        before = largest
    return None
