"""Per-sample gradients of an embedding table, kept as the ids looked up and the gradients of what came out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlmsel.gradients.factors import Factor, Side, spans, wide


class LookupFactor(Factor):
    """Row `ids_it` of g_i gathers `delta_it`; ids are 0 .. rows - 1, half precision is cast up."""

    def __init__(self, ids: Int[Tensor, "n t"], delta: Float[Tensor, "n t cols"], rows: int) -> None:
        if ids.ndim != 2 or delta.ndim != 3 or ids.shape != delta.shape[:2]:
            raise ValueError(
                f"ids have shape {list(ids.shape)} and delta {list(delta.shape)}; expected [n, t] and [n, t, cols]"
            )
        self.ids, self.delta, self.rows = ids, wide(delta), rows
        self.values = self.delta
        self.samples, _, self.cols = delta.shape

    def dense(self) -> Float[Tensor, "n rows cols"]:
        flat = self._new(self.samples * self.rows, self.cols)
        first = self.rows * torch.arange(self.samples, device=self.ids.device)
        flat.index_add_(0, (self.ids + first[:, None]).flatten(), self.delta.flatten(0, 1))
        return flat.unflatten(0, (self.samples, self.rows))

    def select(self, keep: Any) -> Factor:
        return LookupFactor(self.ids[keep], self.delta[keep], self.rows)

    def sq_bound(self) -> Float[Tensor, " n"]:
        return torch.linalg.vector_norm(self.delta, dim=2).sum(1).square()

    def _mixed(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield delta and, for each token, the sum of delta over the sample's tokens with the same id."""
        for span in spans(self.samples, self.ids.shape[1] * max(self.ids.shape[1], self.cols)):
            ids, delta = self.ids[span], self.delta[span]
            yield delta, (ids[:, :, None] == ids[:, None, :]).to(delta.dtype) @ delta

    def sq_norm(self) -> Float[Tensor, " n"]:
        return torch.cat([self._new(0), *((delta * mixed).sum((1, 2)).clamp_min(0) for delta, mixed in self._mixed())])

    def _inner(self, targets: Tensor) -> Tensor:
        products = self._new(len(targets), self.samples)
        for span in spans(self.samples, self.ids.shape[1] * self.cols):
            for row, target in zip(products, targets, strict=True):
                row[span] = (target[self.ids[span]] * self.delta[span]).sum((1, 2))
        return products

    def _gram(self, side: Side) -> Tensor:
        if side == "rows":
            return self._rows_gram()
        total = self._new(self.cols, self.cols)
        for delta, mixed in self._mixed():
            total.addmm_(delta.flatten(0, 1).T, mixed.flatten(0, 1))
        return total

    def _rows_gram(self) -> Tensor:
        total = self._new(self.rows, self.rows)
        for span in spans(self.samples, self.ids.shape[1] ** 2):
            ids, products = self.ids[span], self.delta[span] @ self.delta[span].mT
            total.index_put_((ids[:, :, None], ids[:, None, :]), products, accumulate=True)
        return total

    def _weighted_sum(self, weights: Tensor) -> Tensor:
        total = self._new(len(weights), self.rows, self.cols)
        for row, weight in zip(total, weights, strict=True):
            row.index_add_(0, self.ids.flatten(), (self.delta * weight[:, None, None]).flatten(0, 1))
        return total
