"""Solution by eigenvectors, for a matrix that is positive definite but for rounding: A = V Λ Vᵀ, x = V Λ⁻¹ Vᵀ b."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def solve(a: Float[Tensor, "d d"], b: Float[Tensor, "d k"], low: float) -> Float[Tensor, "d k"]:
    """Return A⁻¹ b, with eigenvalues below `low`, which bounds the spectrum but for rounding, taken for it.

    Raises:
        ValueError: the matrix is not finite.

    >>> solve(torch.tensor([[4.0, 0.0], [0.0, -1e-9]]), torch.tensor([[2.0], [1.0]]), low=0.5).tolist()
    [[0.5], [2.0]]
    """
    if not bool(torch.isfinite(a).all()):
        raise ValueError(f"the matrix {list(a.shape)} is not finite")
    values, vectors = torch.linalg.eigh(a)
    return vectors @ ((vectors.mT @ b) / values.clamp_min(low)[:, None])
