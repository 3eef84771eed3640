"""Per-sample gradients of a weight that is used more than once: by several calls of a layer, or tied between layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vlmsel.gradients.embedding_factor import LookupFactor
from vlmsel.gradients.factors import DenseFactor, Factor, OuterFactor


class SumFactor(Factor):
    """g_i = the sum of several factors of the same samples, as where one weight is used by layers of two kinds.

    Norms and second moments have cross terms, which come from the formed gradients, a few samples at a time.
    """

    def __init__(self, parts: Sequence[Factor]) -> None:
        self.parts, self.values = tuple(parts), parts[0].values
        self.samples, self.rows, self.cols = parts[0].samples, parts[0].rows, parts[0].cols

    def dense(self) -> Float[Tensor, "n rows cols"]:
        return _total(part.dense() for part in self.parts)

    def select(self, keep: Any) -> Factor:
        return SumFactor([part.select(keep) for part in self.parts])

    def sq_bound(self) -> Float[Tensor, " n"]:
        return _total(part.sq_bound().sqrt() for part in self.parts).square()

    def _inner(self, targets: Tensor) -> Tensor:
        return _total(part.inner(targets) for part in self.parts)

    def _weighted_sum(self, weights: Tensor) -> Tensor:
        return _total(part.weighted_sum(weights) for part in self.parts)


def _total(tensors: Iterable[Tensor]) -> Tensor:
    return reduce(torch.add, tensors)


def merge(parts: Sequence[Factor]) -> Factor:
    """Add factors of the same samples and block: those of one kind along the token axis, different kinds as a sum."""
    if len(parts) == 1:  # concatenating one would copy it
        return parts[0]
    merged: list[Factor] = []
    outer = [part for part in parts if isinstance(part, OuterFactor)]
    lookup = [part for part in parts if isinstance(part, LookupFactor)]
    rest = [part for part in parts if not isinstance(part, OuterFactor | LookupFactor)]
    if outer:
        merged.append(OuterFactor(torch.cat([p.left for p in outer], 1), torch.cat([p.right for p in outer], 1)))
    if lookup:
        ids, delta = torch.cat([p.ids for p in lookup], 1), torch.cat([p.delta for p in lookup], 1)
        merged.append(LookupFactor(ids, delta, lookup[0].rows))
    if rest:
        merged.append(DenseFactor(_total(part.dense() for part in rest)))
    return merged[0] if len(merged) == 1 else SumFactor(merged)
