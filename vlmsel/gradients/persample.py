"""Per-sample gradients of selected parameters, formed, from one batched backward: the small-scale view of `capture`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vlmsel.gradients.blocks import Block
from vlmsel.gradients.capture import capture


def per_sample_gradients(
    model: nn.Module, batch: Any, loss: Callable[[nn.Module, Any], Tensor], blocks: Sequence[Block]
) -> dict[str, Float[Tensor, "n _rows _cols"]]:
    """Return each sample's own gradient on every block, as if it were alone in the batch.

    The model runs in eval mode (no dropout) and is left as it was, `.grad` included.

    Args:
        model: any module.
        batch: whatever `loss` understands. Where rows of a module are not samples, its attribute or key `row_samples`
            maps module names to the sample of each row.
        loss: `loss(model, batch)` gives each sample's own loss, [n].
        blocks: what `select_blocks` returned.

    Returns:
        The gradients by the parameter's name, float32 (float64 for a float64 model).

    Raises:
        ValueError: the losses are not one number per sample, or gradients cannot be captured.

    >>> from vlmsel.gradients.blocks import select_blocks
    >>> layer, x = nn.Linear(2, 1), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> loss = lambda model, batch: model(batch)[:, 0]
    >>> per_sample_gradients(layer, x, loss, select_blocks(layer, "weight"))["weight"].tolist()
    [[[1.0, 2.0]], [[3.0, 4.0]]]
    """
    with evaluating(model), torch.enable_grad(), capture(model, blocks, None, _row_samples(batch)) as captured:
        losses = loss(model, batch)
        if losses.ndim != 1:
            raise ValueError(f"the loss has shape {list(losses.shape)}; expected [n], one number per sample")
        captured.samples = len(losses)
        captured.backward(losses)
    return {name: factor.dense() for name, factor in captured.factors().items()}


def _row_samples(batch: Any) -> Mapping[str, Int[Tensor, " _rows"]] | None:
    if isinstance(batch, Mapping):
        return batch.get("row_samples")
    return getattr(batch, "row_samples", None)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode within the block; afterwards every module is in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    try:
        try:
            model.eval()
            yield
        finally:
            _train(training)
    finally:
        _train(training)  # again, for Ctrl-C may have cut the first time short


def _train(modules: Sequence[nn.Module]) -> None:
    for module in modules:
        module.training = True
