"""Per-sample gradients of one block, unmaterialised.

For a linear map y = x Wᵀ the gradient of sample i is a sum of outer products over its tokens, g_i = Σ_t δ_it x_itᵀ, and
a batched backward has both factors. Inner products ⟨h, g_i⟩, norms and second moments follow from them exactly, either
from the tokens or from the formed g_i ("dense"); each operation takes the route with fewer multiply-adds. The norm
‖g_i‖² = Σ_ts (δ_it·δ_is)(x_it·x_is) is that of ghost clipping (arXiv:2110.05679); the other operations follow suit.

Everything is computed in float32 or better, whatever the model's dtype. Matrix products on CUDA obey
`torch.set_float32_matmul_precision`, whose default is full float32.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor

from vlmsel.gradients.routes import gram_route, inner_route, norm_route, sum_route

Side = Literal["cols", "rows"]
LIMIT = 2**26  # elements an intermediate tensor may have, unless a single sample needs more
CANCELLED = 1e-5  # of a squared norm that rounding may be before the gradient is formed instead


def wide(x: Num[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Cast half precision and whole numbers up to float32."""
    return x if x.dtype == torch.float64 else x.float()


def spans(samples: int, each: int) -> Iterator[slice]:
    """Cut the samples so that `each` elements per sample stay below LIMIT."""
    step = max(1, LIMIT // max(1, each))
    for start in range(0, samples, step):
        yield slice(start, start + step)


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    """Concatenate results of pieces, of which there mostly is one."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


class Factor(ABC):
    """The gradients g_i [rows, cols] of `samples` samples on one block, on any device.

    Here every operation forms the gradients, a few samples at a time; kinds of factors know cheaper routes.
    """

    samples: int
    rows: int
    cols: int
    values: Tensor  # a tensor of it that has its dtype and device

    @abstractmethod
    def dense(self) -> Float[Tensor, "n rows cols"]:
        """Form the gradients."""

    @abstractmethod
    def select(self, keep: Any) -> Factor:
        """Return the factor of some samples: a boolean mask [n], indices or a slice."""

    @abstractmethod
    def sq_bound(self) -> Float[Tensor, " n"]:
        """Bound ‖g_i‖² from above, cheaply."""

    def sq_norm(self) -> Float[Tensor, " n"]:
        """Return ‖g_i‖² (Frobenius)."""
        return _joined([torch.linalg.vector_norm(piece.flatten(1), dim=1).square() for piece in self.pieces()], dim=0)

    def inner(self, targets: Float[Tensor, "k rows cols"]) -> Float[Tensor, "k n"]:
        """Return ⟨targets_k, g_i⟩.

        Raises:
            ValueError: the targets have another shape.
        """
        if targets.ndim != 3 or tuple(targets.shape[1:]) != (self.rows, self.cols):
            raise ValueError(f"targets have shape {list(targets.shape)}; expected [k, {self.rows}, {self.cols}]")
        return self._inner(targets.to(self.values.dtype))

    def gram(self, side: Side) -> Float[Tensor, "d d"]:
        """Return Σ_i g_iᵀ g_i (d = cols) for side "cols", Σ_i g_i g_iᵀ (d = rows) for side "rows".

        Raises:
            ValueError: another side.
        """
        if side not in ("cols", "rows"):
            raise ValueError(f"side is {side!r}; expected 'cols' or 'rows'")
        return self._gram(side)

    def weighted_sum(self, weights: Num[Tensor, "k n"]) -> Float[Tensor, "k rows cols"]:
        """Return Σ_i weights_ki g_i.

        Raises:
            ValueError: the weights have another shape.
        """
        if weights.ndim != 2 or weights.shape[1] != self.samples:
            raise ValueError(f"weights have shape {list(weights.shape)}; expected [k, {self.samples}]")
        return self._weighted_sum(weights.to(self.values.dtype))

    def finite(self) -> Bool[Tensor, " n"]:
        """Mark the samples whose gradient is finite, squared norm included."""
        surely = torch.isfinite(self.sq_bound())
        return surely if bool(surely.all()) else torch.isfinite(self.sq_norm())

    @classmethod
    def from_dense(cls, grads: Num[Tensor, "n rows cols"]) -> Factor:
        """Hold gradients that are formed already, float32 or better.

        Raises:
            ValueError: not three dimensions.
        """
        if grads.ndim != 3:
            raise ValueError(f"gradients have shape {list(grads.shape)}; expected [samples, rows, cols]")
        return DenseFactor(wide(grads))

    def compact(self) -> Factor:
        """Return the same gradients in the form that is smaller: as they are, or formed.

        Formed is smaller where samples have many tokens and a side is short, as with LoRA; every operation is then
        cheaper too, and none has to form them again.
        """
        return self

    def pieces(self) -> Iterator[Float[Tensor, "some rows cols"]]:
        """Form the gradients a few samples at a time."""
        if self.samples * self.rows * self.cols <= LIMIT:
            yield self.dense()
            return
        for span in spans(self.samples, self.rows * self.cols):
            yield self.select(span).dense()

    def _new(self, *shape: int) -> Tensor:
        return self.values.new_zeros(shape)

    def _inner(self, targets: Tensor) -> Tensor:
        return _joined([_flat_inner(targets.flatten(1), piece.flatten(1)) for piece in self.pieces()], dim=1)

    def _gram(self, side: Side) -> Tensor:
        size = self.cols if side == "cols" else self.rows
        total = self._new(size, size)
        for piece in self.pieces():
            tall = (piece if side == "cols" else piece.mT).reshape(-1, size)
            total.addmm_(tall.T, tall)
        return total

    def _weighted_sum(self, weights: Tensor) -> Tensor:
        total = self._new(len(weights), self.rows * self.cols)
        for span in spans(self.samples, self.rows * self.cols):
            total.addmm_(weights[:, span], self.select(span).dense().flatten(1))
        return total.unflatten(1, (self.rows, self.cols))


class DenseFactor(Factor):
    """Gradients that are formed already."""

    def __init__(self, grads: Float[Tensor, "n rows cols"]) -> None:
        self.grads = self.values = wide(grads)
        self.samples, self.rows, self.cols = grads.shape

    def dense(self) -> Float[Tensor, "n rows cols"]:
        return self.grads

    def select(self, keep: Any) -> Factor:
        return DenseFactor(self.grads[keep])

    def sq_bound(self) -> Float[Tensor, " n"]:
        return self.sq_norm()


class OuterFactor(Factor):
    """g_i = Σ_t left_it ⊗ right_it; half precision is cast up."""

    def __init__(self, left: Float[Tensor, "n t rows"], right: Float[Tensor, "n t cols"]) -> None:
        if left.ndim != 3 or right.ndim != 3 or left.shape[:2] != right.shape[:2]:
            raise ValueError(
                f"factors have shapes {list(left.shape)} and {list(right.shape)}; "
                "expected [n, t, rows] and [n, t, cols]"
            )
        dtype = torch.promote_types(wide(left).dtype, wide(right).dtype)
        self.left, self.right = left.to(dtype), right.to(dtype)
        self.values = self.left
        self.samples, self.tokens, self.rows = left.shape
        self.cols = right.shape[2]

    def dense(self) -> Float[Tensor, "n rows cols"]:
        return self.left.mT @ self.right

    def compact(self) -> Factor:
        formed = self.rows * self.cols < self.tokens * (self.rows + self.cols)
        return DenseFactor(self.dense()) if formed else self

    def select(self, keep: Any) -> Factor:
        return OuterFactor(self.left[keep], self.right[keep])

    def sq_bound(self) -> Float[Tensor, " n"]:
        lengths = torch.linalg.vector_norm(self.left, dim=2) * torch.linalg.vector_norm(self.right, dim=2)
        return lengths.sum(1).square()

    def sq_norm(self) -> Float[Tensor, " n"]:
        if norm_route(self.tokens, self.rows, self.cols) == "dense":
            return super().sq_norm()
        norms = [self._new(0)]
        for span in spans(self.samples, 2 * self.tokens**2):
            left, right = self.left[span], self.right[span]
            lefts, rights = left @ left.mT, right @ right.mT
            own = (lefts * rights).sum((1, 2))
            lost = ~(_rounding(lefts, rights) <= CANCELLED * own)  # also where it is below 0, or not a number
            if bool(lost.any()):
                own[lost] = OuterFactor(left[lost], right[lost]).dense().square().sum((1, 2))
            norms.append(own)
        return torch.cat(norms)

    def _inner(self, targets: Tensor) -> Tensor:
        if inner_route(self.tokens, self.rows, self.cols, len(targets)) == "dense":
            return super()._inner(targets)
        small, large = self.left, self.right
        if self.rows > self.cols:
            small, large, targets = self.right, self.left, targets.mT
        step = max(1, LIMIT // max(1, self.tokens * small.shape[2]))  # targets at a time, for one sample
        parts = [_token_inner(small, large, some) for some in targets.split(step)]
        return torch.cat([self._new(0, self.samples), *parts])

    def _gram(self, side: Side) -> Tensor:
        kept, other = (self.right, self.left) if side == "cols" else (self.left, self.right)
        if gram_route(self.tokens, other.shape[2], kept.shape[2]) == "dense":
            return super()._gram(side)
        total = self._new(kept.shape[2], kept.shape[2])
        for span in spans(self.samples, self.tokens * max(self.tokens, kept.shape[2])):
            mixed = (other[span] @ other[span].mT) @ kept[span]  # [n, t, kept]
            total.addmm_(kept[span].flatten(0, 1).T, mixed.flatten(0, 1))
        return total

    def _weighted_sum(self, weights: Tensor) -> Tensor:
        if sum_route(self.tokens, self.rows, self.cols, len(weights)) == "dense":
            return super()._weighted_sum(weights)
        sums = [self._new(0, self.rows, self.cols)]
        for row in weights[:, :, None, None].unbind():  # [n, 1, 1]
            left, right = (self.left * row, self.right) if self.rows <= self.cols else (self.left, self.right * row)
            sums.append((left.flatten(0, 1).T @ right.flatten(0, 1))[None])
        return torch.cat(sums)


def _rounding(lefts: Float[Tensor, "n t t"], rights: Float[Tensor, "n t t"]) -> Float[Tensor, " n"]:
    """Bound what Σ_ts ⟨δ_t, δ_s⟩⟨x_t, x_s⟩ is off by: each product by its vectors' lengths, either way by chance."""
    sizes = lefts.diagonal(dim1=1, dim2=2) * rights.diagonal(dim1=1, dim2=2)
    return 2 * torch.finfo(lefts.dtype).eps * sizes.sum(1)


def _flat_inner(targets: Tensor, grads: Tensor) -> Tensor:
    """Return targets @ gradsᵀ with the longer side last, along which libraries vectorise. [k, d], [n, d] -> [k, n]"""
    return (grads @ targets.T).T if len(targets) >= len(grads) else targets @ grads.T


def _token_inner(small: Tensor, large: Tensor, targets: Tensor) -> Tensor:
    """Return Σ_t small_itᵀ targets_k large_it. [n, t, s], [n, t, l], [k, s, l] -> [k, n]"""
    k, s, size = targets.shape
    flat = targets.reshape(k * s, size).T
    parts = [small.new_zeros(k, 0)]
    for span in spans(len(small), small.shape[1] * k * s):
        mapped = (large[span] @ flat).unflatten(2, (k, s))  # [n, t, k, s]
        parts.append(torch.einsum("ntks,nts->kn", mapped, small[span]))
    return torch.cat(parts, dim=1)
