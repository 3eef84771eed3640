"""Division by norms over all blocks together, for scorers that say so (`GradientScorer.normalised`): with h = P v

    I(i, t) = -Σ_l ⟨h_t^l, g_i^l⟩ / (‖h_t‖ ‖g_i‖),   ‖x‖² = Σ_l ‖x^l‖².

Norms add up over blocks as squares, so they are gathered block by block, in float64. A target or sample without a
gradient on any block has no direction: its scores are 0, as without the division.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def over_norm(values: Float[Tensor, "*shape"], squares: Float[Tensor, "*_squares"]) -> Float[Tensor, "*shape"]:
    """Return values / √squares in the dtype of the values, 0 where the square is 0; squares broadcast to the values.

    >>> over_norm(torch.tensor([6.0, 5.0]), torch.tensor([4.0, 0.0])).tolist()
    [3.0, 0.0]
    """
    norms = squares.sqrt().to(values.dtype)
    return torch.where(norms > 0, values / norms, torch.zeros_like(values))


def divide_columns_(stacks: dict[str, Float[Tensor, "columns _rows _cols"]], which: Sequence[bool]) -> None:
    """Give the columns `which` of all blocks' stacks the norm 1 over the blocks together.

    In place, for the stacks of a large model are many times its blocks; columns of zeros stay.
    """
    columns = [column for column, divided in enumerate(which) if divided]
    if not columns:
        return
    norms = [torch.linalg.vector_norm(stack[columns], dim=(1, 2), dtype=torch.float64) for stack in stacks.values()]
    squares = torch.stack([norm.square() for norm in norms]).sum(0)
    for stack in stacks.values():
        for column, square in zip(columns, squares, strict=True):
            stack[column] = over_norm(stack[column], square)
