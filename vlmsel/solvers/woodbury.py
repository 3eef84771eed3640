"""(1/n GᵀG + λI)⁻¹ v in sample space, for fewer samples than dimensions (Woodbury's identity)

(1/n GᵀG + λI)⁻¹ v = 1/λ ( v - Gᵀ (nλ I + G Gᵀ)⁻¹ G v )
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from vlmsel.solvers import cholesky


def solve(
    gradients: Float[Tensor, "n d"],
    damping: float,
    v: Float[Tensor, "k d"],
    inner: Callable[[Tensor, Tensor], Tensor] = cholesky.solve,
) -> Float[Tensor, "k d"]:
    """Return the solutions for the rows of `v`, with the rows of `gradients` as G and `damping` λ > 0; `inner` solves
    the system of n × n.

    >>> solve(torch.tensor([[2.0, 0.0]]), 1.0, torch.tensor([[10.0, 3.0]])).tolist()
    [[2.0, 3.0]]
    """
    n = len(gradients)
    system = gradients @ gradients.T + n * damping * torch.eye(n, dtype=v.dtype, device=v.device)
    weights = inner(system, gradients @ v.T)  # [n, k]
    return (v - weights.T @ gradients) / damping
