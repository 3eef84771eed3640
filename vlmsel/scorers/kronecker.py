"""Preconditioners that are diagonal in a Kronecker eigenbasis, and what they are gathered from.

    P v = U ( (Uᵀ v V) / (Λ + λ) ) Vᵀ,     ⟨P g, g⟩ = Σ_ij (Uᵀ g V)²_ij / (Λ_ij + λ)

with U [rows, rows] and V [cols, cols] orthogonal and Λ [rows, cols] eigenvalues. λ = damping · mean of g² over samples
and entries, as for HyperINF, is added to the eigenvalues of the product, not to those of its factors.

    TokenMoments     Σ δ δᵀ and Σ x xᵀ over the tokens that have a gradient, and Σ_j ‖g_j‖² over samples
    SidedGrams       Σ_j g_j g_jᵀ and Σ_j g_jᵀ g_j
    RotatedSquares   Σ_j (Uᵀ g_j V)² by entry

Sums are in float64, their terms are not: what rounds in the products of a batch averages out over many, what a float32
sum rounds off at every batch does not (K-FAC's h: 2e-5 for 3e-3 after 20,000 samples with a large common input).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from vlmsel.gradients import DenseFactor, Factor, OuterFactor
from vlmsel.scorers.base import GradientScorer, Metric, Solved, no_fit_gradient
from vlmsel.scorers.statistics import BlockTargets, State, Statistic


class Basis(NamedTuple):
    """Orthogonal matrices of a block, and the eigenvalues along each. U [rows, rows], V [cols, cols], float64"""

    rows: Tensor
    cols: Tensor
    row_values: Tensor
    col_values: Tensor

    @classmethod
    def of(cls, rows: Float[Tensor, "r r"], cols: Float[Tensor, "c c"]) -> Basis:
        """Find the eigenvectors of two second moments; rounding leaves no eigenvalue below 0."""
        (row_values, u), (col_values, v) = (torch.linalg.eigh(side.double()) for side in (rows, cols))
        return cls(u, v, row_values.clamp_min(0), col_values.clamp_min(0))

    @property
    def products(self) -> Float[Tensor, "r c"]:
        """The eigenvalues of the Kronecker product."""
        return self.row_values[:, None] * self.col_values


class Diagonal(NamedTuple):
    """P, by its basis and 1 / (Λ + λ) there, None for a block without gradients, and λ."""

    basis: Basis
    weights: Tensor | None
    damping: float

    @classmethod
    def of(cls, basis: Basis, values: Float[Tensor, "r c"], damping: float) -> Diagonal:
        """Damp eigenvalues."""
        return cls(basis, None if damping == 0 else 1 / (values + damping), damping)

    def solve(self, v: Float[Tensor, "targets rows cols"], **details: object) -> Solved:
        """Return h = P v; the arithmetic is in float64."""
        details = {"damping": self.damping, **details}
        if self.weights is None:
            return no_fit_gradient(v, **details)
        u, w = self.basis.rows, self.basis.cols
        h = torch.zeros_like(v)
        for own, target in zip(h, v, strict=True):  # one at a time, for they are copied to float64
            own.copy_(u @ ((u.T @ target.double() @ w) * self.weights) @ w.T)
        return Solved(h, details)

    def metric(self, block: BlockTargets) -> Metric:
        """Return the norm that P defines."""
        if self.weights is None:
            return Metric(scale=0.0)
        sides = (side.to(block.dtype) for side in (self.basis.rows.T, self.basis.cols.T, self.weights))
        rows, cols, weights = (side.contiguous() for side in sides)
        return Metric(rows, cols, weights=weights)


class KroneckerScorer(GradientScorer):
    """A scorer whose P is diagonal in a Kronecker eigenbasis, which gives it a norm of its own."""

    @abstractmethod
    def diagonal(self, statistic: Any) -> Diagonal:
        """Return P of a block."""

    def solve(self, statistic: Any, v: Float[Tensor, "targets rows cols"]) -> Solved:
        return self.diagonal(statistic).solve(v, samples=statistic.count)

    def solve_bytes(self, block: BlockTargets, samples: int) -> int:
        moments = 5 * 8 * (block.rows**2 + block.cols**2)  # means, their eigenvectors, and what finding them takes
        return block.targets.nbytes + moments + 4 * 8 * block.entries

    @property
    def own_norm(self) -> bool:
        return True

    def metric(self, statistic: Any) -> Metric:
        return self.diagonal(statistic).metric(statistic.block)

    def metric_bytes(self, block: BlockTargets) -> int:
        return (block.rows**2 + block.cols**2 + block.entries) * block.dtype.itemsize


class TokenMoments(Statistic):
    """Σ δ δᵀ [rows, rows] and Σ x xᵀ [cols, cols] over tokens, how many there are, and
    Σ_j ‖g_j‖².

    A token counts where δ xᵀ is not 0, so that padding does not. A formed gradient has no tokens, unless a side of the
    block is 1: then each sample's is one outer product.
    """

    tokens = True

    def __init__(self, block: BlockTargets) -> None:
        super().__init__(block)
        like = block.targets
        self.rows, self.cols = (like.new_zeros(size, size, dtype=torch.float64) for size in (block.rows, block.cols))
        self.seen, self.squares = like.new_zeros(2, dtype=torch.float64).split(1)

    @property
    def key(self) -> Hashable:
        return "token moments"

    def gather(self, factor: Factor) -> None:
        left, right = token_pairs(factor)
        real = ((left != 0).any(1) & (right != 0).any(1)).to(left.dtype)[:, None]
        left, right = left * real, right * real
        rows, cols, seen = left.T @ left, right.T @ right, real.sum(dtype=torch.float64)
        squares = factor.sq_norm().sum(dtype=torch.float64)
        self.rows += rows.to(self.rows.device)
        self.cols += cols.to(self.cols.device)
        self.seen += seen
        self.squares += squares

    @property
    def mean_square(self) -> float:
        """The mean over samples and entries of g²; 0 for no sample."""
        return float(self.squares) / max(1, self.count * self.block.entries)

    def basis(self) -> Basis:
        """Return the eigenbasis of S = E[δ δᵀ] and of A = E[x xᵀ] over tokens."""
        seen = max(1.0, float(self.seen))
        return Basis.of(self.rows / seen, self.cols / seen)

    @property
    def per_sample(self) -> float:
        """Tokens of a sample, on average."""
        return float(self.seen) / max(1, self.count)

    def tensors(self) -> State:
        return {"rows": self.rows, "cols": self.cols, "seen": self.seen, "squares": self.squares}


def token_pairs(factor: Factor) -> tuple[Float[Tensor, "tokens rows"], Float[Tensor, "tokens cols"]]:
    """Return δ and x of all tokens of all samples.

    Raises:
        ValueError: the gradients are formed already, or those of a table or of a weight that is used in two ways.
    """
    if isinstance(factor, OuterFactor):
        return factor.left.flatten(0, 1), factor.right.flatten(0, 1)
    if isinstance(factor, DenseFactor) and 1 in (factor.rows, factor.cols):
        grads, one = factor.grads, factor.grads.new_ones(factor.samples, 1)
        return (one, grads[:, 0]) if factor.rows == 1 else (grads[:, :, 0], one)
    what = (
        "formed gradients" if isinstance(factor, DenseFactor) else "those of a table of embeddings or of tied weights"
    )
    raise ValueError(
        f"a block [{factor.rows}, {factor.cols}] has {what}, and K-FAC's factors are moments of the tokens of linear "
        "layers: score from a model instead of a store or arrays, leave the block out, or use TwoSided"
    )


class SidedGrams(Statistic):
    """Σ_j g_j g_jᵀ [rows, rows] and Σ_j g_jᵀ g_j [cols, cols]."""

    def __init__(self, block: BlockTargets) -> None:
        super().__init__(block)
        like = block.targets
        self.rows, self.cols = (like.new_zeros(size, size, dtype=torch.float64) for size in (block.rows, block.cols))

    @property
    def key(self) -> Hashable:
        return "sided grams"

    def gather(self, factor: Factor) -> None:
        factor = factor.compact()
        device = self.rows.device
        rows, cols = (factor.gram(side).to(device) for side in ("rows", "cols"))  # type: ignore[arg-type]
        self.rows += rows
        self.cols += cols

    def tensors(self) -> State:
        return {"rows": self.rows, "cols": self.cols}


class RotatedSquares(Statistic):
    """Σ_j (Uᵀ g_j V)² by entry, in the block's basis. [rows, cols] float64"""

    def __init__(self, block: BlockTargets) -> None:
        super().__init__(block)
        self.total = block.targets.new_zeros(block.rows, block.cols, dtype=torch.float64)

    @property
    def key(self) -> Hashable:
        return "rotated squares"

    @property
    def basis(self) -> Basis:
        """The basis that was found before."""
        assert self.block.basis is not None
        return self.block.basis

    def gather(self, factor: Factor) -> None:
        total = torch.zeros_like(self.total)
        u, v = (side.to(factor.values) for side in (self.basis.rows, self.basis.cols))
        for piece in factor.compact().pieces():
            total += (u.T @ piece @ v).square().sum(0, dtype=torch.float64)
        self.total += total

    def tensors(self) -> State:
        return {"total": self.total}

    def bytes(self, samples: int) -> int:
        block = self.block
        return 8 * (block.entries + block.rows**2 + block.cols**2)  # the basis beside it
