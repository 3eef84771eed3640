"""Direct solution of a symmetric positive definite system: A = L Lᵀ, then two triangular solves."""

from __future__ import annotations

import torch
from torch import Tensor


def solve(a: Tensor, b: Tensor) -> Tensor:
    """Return A⁻¹ b for `a` [d, d] and `b` [d, k].

    Raises:
        ValueError: the matrix is not positive definite to working precision.

    >>> solve(torch.tensor([[4.0]]), torch.tensor([[2.0, 8.0]])).tolist()
    [[0.5, 2.0]]
    """
    factor, failed = torch.linalg.cholesky_ex(a)
    if bool(failed):
        raise ValueError(
            f"the matrix [{len(a)}, {len(a)}] is not positive definite in {str(a.dtype).removeprefix('torch.')}; "
            "raise the damping"
        )
    return torch.cholesky_solve(b, factor)
