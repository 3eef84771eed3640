"""(H)⁻¹ v by the scaled Neumann series, the recursion of LiSSA (Agarwal et al. 2017, arXiv 1602.03943):

r_0 = s v,    r_k = s v + r_{k-1} - s H r_{k-1}  ->  H⁻¹ v    for 0 < s < 2/λ_max(H)
"""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor


def solve(
    apply: Callable[[Tensor], Tensor], v: Float[Tensor, "*shape"], scale: float, depth: int
) -> Float[Tensor, "*shape"]:
    """Return r_depth for a linear map `apply` (r -> H r) and a right-hand side of any shape.

    >>> import torch
    >>> solve(lambda r: 4 * r, torch.tensor([1.0]), scale=0.25, depth=3).tolist()
    [0.25]
    """
    r = scale * v
    for _ in range(depth):
        r = scale * v + r - scale * apply(r)
    return r
