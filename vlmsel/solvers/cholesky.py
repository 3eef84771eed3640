"""Direct solution of a symmetric positive definite system: A = L Lᵀ, then two triangular solves."""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

COLUMNS = 64  # of an inverse found at a time


def solve(
    a: Float[Tensor, "*batch d d"], b: Float[Tensor, "*batch d k"], overwrite: bool = False
) -> Float[Tensor, "*batch d k"]:
    """Return A⁻¹ b, for one system or a batch of them.

    Args:
        a: symmetric; only one triangle is read.
        b: right-hand sides.
        overwrite: put L in the place of `a`, so that no second matrix is made.

    Raises:
        ValueError: a matrix is not positive definite to working precision.

    >>> solve(torch.tensor([[4.0]]), torch.tensor([[2.0, 8.0]])).tolist()
    [[0.5, 2.0]]
    """
    return substitute(factor(a, overwrite), b)


def factor(a: Float[Tensor, "*batch d d"], overwrite: bool = False) -> Float[Tensor, "*batch d d"]:
    """Return L, for arguments as `solve` takes them.

    Raises:
        ValueError: a matrix is not positive definite to working precision.
    """
    lower = (a if overwrite else a.clone()).mT  # by columns, as LAPACK wants it, or it would make a copy
    failed = torch.empty(a.shape[:-2], dtype=torch.int32, device=a.device)
    torch.linalg.cholesky_ex(lower, out=(lower, failed))
    if bool(failed.any()):
        raise ValueError(
            f"the matrix {list(a.shape[-2:])} is not positive definite in {str(a.dtype).removeprefix('torch.')}; "
            "raise the damping"
        )
    return lower


def inverse_factor(lower: Float[Tensor, "d d"], dtype: torch.dtype) -> Shaped[Tensor, "d d"]:
    """Return L⁻¹ in another dtype, a few columns at a time.

    >>> inverse_factor(torch.tensor([[2.0, 0.0], [1.0, 4.0]], dtype=torch.float64), torch.float32).tolist()
    [[0.5, 0.0], [-0.125, 0.25]]
    """
    d = len(lower)
    found = lower.new_empty(d, d, dtype=dtype)
    for start in range(0, d, COLUMNS):
        some = found[:, start : start + COLUMNS]
        identity = lower.new_zeros(some.shape)
        identity.diagonal(-start).fill_(1)
        some.copy_(torch.linalg.solve_triangular(lower, identity, upper=False))  # all of L: a part would be copied
    return found


def substitute(lower: Float[Tensor, "*batch d d"], b: Float[Tensor, "*batch d k"]) -> Float[Tensor, "*batch d k"]:
    """Return (L Lᵀ)⁻¹ b."""
    return torch.linalg.solve_triangular(lower.mT, torch.linalg.solve_triangular(lower, b, upper=False), upper=True)
