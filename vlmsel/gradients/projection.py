"""Random projection of per-sample gradients, block by block and on both sides: g -> A g Bᵀ.

A [k, rows] and B [l, cols] are Gaussian with variances 1/k and 1/l, so that E⟨A g Bᵀ, A h Bᵀ⟩ = ⟨g, h⟩ for any two
gradients of the block. Two-sided projection is that of LoGra (Choe et al. 2024, arXiv 2405.13954): since g is a sum of
outer products, its factors are projected before anything is formed. Here the matrices are not fitted to the gradients,
and a side that is not larger than its projected size stays as it is.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from vlmsel.checks import check_count
from vlmsel.gradients import Block, DenseFactor, Factor, LookupFactor, OuterFactor, SumFactor

STRIP, STRIPS = 64, 8  # the least columns of a strip, and how many a large matrix is cut into


class Matrices(NamedTuple):
    """What a block is projected with; None for a side that stays as it is, a vector for a diagonal matrix."""

    rows: Float[Tensor, "*k rows"] | None
    cols: Float[Tensor, "*l cols"] | None

    def to(self, like: Float[Tensor, "*shape"]) -> Matrices:
        """Return them with the dtype and on the device of a tensor."""
        return Matrices(*(None if side is None else side.to(like) for side in self))


@dataclass(frozen=True)
class Projection:
    """How large projected blocks are.

    Attributes:
        rows, cols: the greatest number of rows and columns that a block keeps.
        seed: draws the matrices, together with the block's name.
    """

    rows: int
    cols: int
    seed: int = 0

    def __post_init__(self) -> None:
        check_count(rows=self.rows, cols=self.cols)

    def shape(self, rows: int, cols: int) -> tuple[int, int]:
        """Return the shape that a block [rows, cols] is projected to.

        >>> Projection(16, 16).shape(8, 4096)
        (8, 16)
        """
        return min(rows, self.rows), min(cols, self.cols)

    def matrices(self, block: Block) -> Matrices:
        """Draw a block's matrices, float32 on the CPU: a function of the seed, the block's name and the sizes."""
        return Matrices(
            self._side(block, "rows", block.rows, self.rows), self._side(block, "cols", block.cols, self.cols)
        )

    def _side(self, block: Block, side: str, size: int, kept: int) -> Tensor | None:
        if size <= kept:
            return None
        digest = hashlib.blake2b(f"{self.seed} {side} {block.name}".encode(), digest_size=8).digest()
        generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest, "big") >> 1)
        # in float64, whose rounding is gone in float32: vector units differ in the last bits of a float32 draw
        return (torch.randn(kept, size, generator=generator, dtype=torch.float64) / math.sqrt(kept)).float()


def projected(factor: Factor, matrices: Matrices) -> Factor:
    """Return A g Bᵀ of every sample, as factors where the gradients are factors and formed otherwise."""
    rows, cols = matrices
    if rows is None and cols is None:
        return factor
    if isinstance(factor, SumFactor):
        return SumFactor([projected(part, matrices) for part in factor.parts])
    if isinstance(factor, OuterFactor):
        return OuterFactor(_mapped(factor.left, rows), _mapped(factor.right, cols))
    if isinstance(factor, LookupFactor):  # a token that looks up row r has the outer product of A's column r with B δ
        delta = _mapped(factor.delta, cols)
        if rows is None or rows.dim() == 1:
            return LookupFactor(factor.ids, delta if rows is None else delta * rows[factor.ids][..., None], factor.rows)
        return OuterFactor(rows.T[factor.ids], delta)
    across = _mapped(factor.dense(), cols)
    if rows is None:
        return DenseFactor(across)
    return DenseFactor(rows[:, None] * across if rows.dim() == 1 else rows @ across)


def _mapped(x: Tensor, matrix: Tensor | None) -> Tensor:
    """[..., size] -> [..., kept]"""
    if matrix is None:
        return x
    return x * matrix if matrix.dim() == 1 else x @ matrix.T


def lower_strips(
    x: Float[Tensor, "*rest size"], lower: Float[Tensor, "size size"]
) -> Iterator[Float[Tensor, "*rest _width"]]:
    """Give x Lᵀ of a lower triangular L a few columns at a time, without the products with L's zeros."""
    size = len(lower)
    width = max(STRIP, -(-size // STRIPS))
    for start in range(0, size, width):
        end = min(size, start + width)
        yield x[..., :end] @ lower[start:end, :end].T
