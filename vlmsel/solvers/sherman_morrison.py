"""The mean of damped rank-one inverses, applied to v (Sherman & Morrison 1950; DataInf, arXiv 2310.00902)

1/n Σ_j (g_j g_jᵀ + λI)⁻¹ v = 1/λ ( v - 1/n Σ_j w_j g_j ),    w_j = ⟨v, g_j⟩ / (λ + ‖g_j‖²)
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def weights(inner: Float[Tensor, "k n"], sq_norm: Float[Tensor, " n"], damping: float) -> Float[Tensor, "k n"]:
    """Return w for inner products ⟨v_k, g_j⟩, squared norms and λ >= 0; a zero gradient weighs 0.

    >>> weights(torch.tensor([[6.0, 0.0]]), torch.tensor([2.0, 0.0]), damping=1.0).tolist()
    [[2.0, 0.0]]
    """
    below = sq_norm + damping
    return torch.where(below > 0, inner / below, torch.zeros_like(inner))
