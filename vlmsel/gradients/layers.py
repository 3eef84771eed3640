"""From what a layer read and the gradient of what it gave to the per-sample gradients of its parameters.

    linear     y = x Wᵀ + b        W: Σ_t δ_t ⊗ x_t,  b: Σ_t δ_t
    Conv1D     y = x W + b         W: Σ_t x_t ⊗ δ_t
    embedding  y = W[id]           W: row id_t gathers δ_t
    norms      y = x̂ · w + b       w: Σ_t δ_t · x̂_t
    magnitude  y = m · z - b       m: Σ_t δ_t · z_t      (DoRA: z = (W + s·BA) x / ‖W + s·BA‖, b = W x)
    matrix     y = f(x) W          W: Σ_t f(x)_t ⊗ δ_t   (Gemma 3's projector, whose W is in no layer)

Rows of a layer's input are samples unless a map says otherwise: then a sample's rows (none, one or several) are laid
one after another along its token axis, padded with zeros to the longest.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from vlmsel.gradients.blocks import MATRIX, layer_kind
from vlmsel.gradients.embedding_factor import LookupFactor
from vlmsel.gradients.factors import DenseFactor, Factor, OuterFactor, wide


def contribution(
    module: nn.Module, leaf: str, x: Shaped[Tensor, "rows ..."], delta: Float[Tensor, "rows ... out"], rows: Rows
) -> Factor:
    """Return the per-sample gradients of parameter `leaf` from one call of its layer.

    Args:
        module: a supported layer.
        leaf: "weight" or "bias".
        x: what `read` gave: the layer's input, [rows, ..., in] (an embedding's ids: [rows, ...]), or what stands for
            it.
        delta: the gradient of its output.
        rows: which sample each row belongs to.
    """
    kind = layer_kind(module)
    delta = tokens(delta)
    if leaf == "bias":
        return DenseFactor(rows.add_up(delta)[:, None])
    if isinstance(module, nn.Embedding):
        ids = x.flatten(1) if x.ndim > 1 else x[:, None]
        if module.padding_idx is not None:  # torch gives that row no gradient
            delta = delta.masked_fill((ids == module.padding_idx)[..., None], 0)
        return LookupFactor(rows.fold(ids), rows.fold(delta), module.num_embeddings)
    if kind == "linear":
        return OuterFactor(rows.fold(delta), rows.fold(tokens(x)))
    if kind == "magnitude":
        return DenseFactor(rows.add_up(wide(delta) * tokens(x))[:, None])
    if kind in ("conv1d", "matrix"):
        return OuterFactor(rows.fold(tokens(x)), rows.fold(delta))
    return DenseFactor(rows.add_up(wide(delta) * tokens(normalised(module, x)))[:, None])


@torch.no_grad()
def read(
    module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Shaped[Tensor, "*shape"]
) -> Shaped[Tensor, "*read"]:
    """Return what a call's contributions follow from beside δ: what the layer read, or its parameter multiplies."""
    kind = layer_kind(module)
    if kind == "magnitude":
        return _directions(module, args[0], output, kwargs["base_layer"], kwargs.get("base_result"))
    if kind == "matrix":  # it gives this for the unit matrix
        weight = module.get_parameter(MATRIX)
        unit = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
        return _with({MATRIX: nn.Parameter(unit)}, module, *args, **kwargs)
    return args[0] if args else next(iter(kwargs.values()))


def _directions(module: nn.Module, x: Tensor, output: Tensor, base_layer: Any, base: Tensor | None) -> Tensor:
    """Return DoRA's z = (y + b) / m, float32 or better; a length of 0 has no direction in PEFT's layer either."""
    base = base_layer(x) if base is None else base
    base = base if base_layer.bias is None else base - base_layer.bias
    return (wide(output) + wide(base)) / wide(module.get_parameter("weight"))


def tokens(x: Float[Tensor, "rows ... d"]) -> Float[Tensor, "rows t d"]:
    """See the input of a layer as tokens, one per row where it has no axis of them."""
    return x[:, None] if x.ndim == 2 else x.flatten(1, -2)


def normalised(module: nn.Module, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return x̂, what a norm multiplies with its weight, rounded as the layer rounds it.

    RMSNorm classes differ in where they cast and in whether they multiply with w or 1 + w; the output is affine in w
    for all, so that x̂ is the difference between the outputs for w = 1 and for w = 0.
    """
    if isinstance(module, nn.LayerNorm):
        return F.layer_norm(wide(x), module.normalized_shape, eps=module.eps)
    with torch.no_grad():
        return _with_weight(module, 1.0, x) - _with_weight(module, 0.0, x)


def _with_weight(module: nn.Module, value: float, x: Tensor) -> Tensor:
    """Run a norm with a constant weight."""
    return _with({"weight": nn.Parameter(torch.full_like(module.get_parameter("weight"), value))}, module, x)


def _with(parameters: dict[str, nn.Parameter | None], module: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
    """Run a layer with other parameters, without its hooks and without touching it."""
    twin = copy.copy(module)
    twin._parameters = parameters
    return type(module).forward(twin, *args, **kwargs)


class Rows:
    """Which of `samples` samples each row of a layer's input belongs to; no map where rows are samples."""

    def __init__(self, samples: int, owners: Int[Tensor, " rows"] | None = None) -> None:
        self.samples, self.owners = samples, owners

    def fold(self, x: Shaped[Tensor, "rows t *rest"]) -> Shaped[Tensor, "samples laid *rest"]:
        """Lay the rows of each sample along the token axis, `laid` being t times the most rows of a sample."""
        if self.owners is None:
            return x
        counts = torch.bincount(self.owners, minlength=self.samples)
        most = int(counts.max())
        order = self.owners.argsort(stable=True)
        owners = self.owners[order]
        position = torch.arange(len(owners), device=owners.device) - (counts.cumsum(0) - counts)[owners]
        laid = x.new_zeros(self.samples, most, *x.shape[1:])
        laid[owners, position] = x[order]
        return laid.flatten(1, 2)

    def add_up(self, x: Float[Tensor, "rows t d"]) -> Float[Tensor, "samples d"]:
        """Sum over the tokens of each sample, in float32 or better."""
        sums = x.sum(1, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
        if self.owners is None:
            return sums
        return sums.new_zeros(self.samples, sums.shape[1]).index_add_(0, self.owners, sums)
