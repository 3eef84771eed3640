"""Whether captured gradients are autograd's own, tried on a few samples before a pass relies on them.

Autograd differentiates each sample's loss in the batch by the blocks' parameters, which must give what was captured for
the sample: weights used without calling their module, kernels that pass by the hooks, and rows that do not come in the
order of the samples give something else. Then each sample's loss and gradient must be what they are alone.

Autograd rounds its sums in the model's dtype, by up to as much as their terms are long (the gradient of a key's bias is
0 but for that), and δ itself by as much as what it was made of: of a query whose values are all but equal nothing is
left but the rounding of larger gradients. So a difference counts from a share of the gradient on, from a share of
Σ_t ‖δ_t‖ ‖x_t‖, and from a share of the sample's gradient over all blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlmsel.gradients.blocks import Block
from vlmsel.gradients.capture import Capture, Maps, frozen
from vlmsel.gradients.factors import DenseFactor, Factor, wide
from vlmsel.gradients.layers import Rows, tokens
from vlmsel.gradients.lora_merge import merged
from vlmsel.gradients.persample import evaluating

LIMIT = 2**30  # bytes of autograd's gradients at a time
MEND = "choose other blocks, or go without this check (--check none)"


class Tolerance(NamedTuple):
    """What a gradient in the batch may differ by, in shares of its norm, of its terms' lengths and of the sample's
    gradient over all blocks; what the latter and the sample's loss may differ by from those that it has alone."""

    gradient: float
    terms: float
    whole: float
    alone: float
    loss: float


TOLERANCES = {
    8: Tolerance(1e-6, 1e-10, 1e-15, 1e-5, 1e-6),  # by the bytes of the narrowest dtype
    4: Tolerance(1e-2, 1e-4, 1e-6, 0.05, 1e-3),
    2: Tolerance(0.2, 0.02, 1e-3, 0.5, 0.1),  # half precision routes a token to another expert now and then
}


class _Measured(Capture):
    """A capture that also sums the lengths of the terms of each sample's gradient, [n] per block."""

    def start(self, samples: int | None, row_samples: Maps | None = None) -> None:
        super().start(samples, row_samples)
        self.lengths: dict[str, Tensor] = {}

    def _contributions(self, name: str, x: Tensor, delta: Tensor, rows: Rows) -> Iterator[tuple[str, Factor]]:
        summed = rows.add_up(torch.linalg.vector_norm(wide(tokens(delta)), dim=2, keepdim=True))[:, 0]
        for block, factor in super()._contributions(name, x, delta, rows):
            own = summed if isinstance(factor, DenseFactor) else factor.sq_bound().sqrt()
            self.lengths[block] = self.lengths.get(block, 0) + own
            yield block, factor


def check_capture(
    model: nn.Module,
    batch: Any,
    loss: Callable[[nn.Module, Any], Tensor],
    blocks: Sequence[Block],
    row_samples: Maps | None = None,
    alone: Sequence[Any] = (),
) -> None:
    """Refuse blocks whose captured gradients are not each sample's own.

    The model is left as it was. Samples whose loss is not finite are not looked at.

    Args:
        model: any module.
        batch: a few samples, as `loss` takes them.
        loss: `loss(model, batch)` gives each sample's own loss, [n].
        blocks: what `select_blocks` returned.
        row_samples: as for `capture`.
        alone: each sample of the batch as a batch of its own.

    Raises:
        ValueError: names the block and what is wrong with it, or the sample whose loss depends on the batch.
    """
    tolerance = _tolerance(model)
    with evaluating(model), torch.enable_grad():
        losses = loss(model, batch).detach()
        for number, single in enumerate(alone):
            _check_loss(number, float(losses[number]), float(loss(model, single).detach()), tolerance)
        captured = _Measured(model, blocks, len(losses), row_samples or {})
        with captured.installed(), frozen(model), merged(captured.adapters.values()):
            captured.backward(torch.where(losses.isfinite(), loss(model, batch), 0.0))
        found = captured.factors()
        whole = torch.stack([factor.sq_norm().double().cpu() for factor in found.values()]).sum(0).sqrt()
        looked_at = losses.isfinite().nonzero().flatten().tolist()
        for group in _groups(model, blocks):
            own = [_gradients(model, group, lambda i=i: loss(model, batch)[i]) for i in looked_at]  # type: ignore[misc]
            for name in group:
                one = _Block(name, found[name].select(looked_at).dense(), captured.lengths.get(name), whole)
                one.check(torch.stack([gradients.pop(name) for gradients in own]), looked_at, tolerance)
        for number, single in enumerate(alone):
            if number in looked_at:
                _check_alone(model, blocks, captured, number, lambda one=single: loss(model, one)[0], tolerance)  # type: ignore[misc]


def _tolerance(model: nn.Module) -> Tolerance:
    if any(map(torch.is_autocast_enabled, ("cpu", "cuda"))):
        return TOLERANCES[2]
    narrowest = min((p.dtype.itemsize for p in model.parameters() if p.is_floating_point()), default=4)
    return TOLERANCES[max(2, narrowest)]


def _groups(model: nn.Module, blocks: Sequence[Block]) -> Iterator[dict[str, nn.Parameter]]:
    """Give the blocks' parameters by name, some at a time."""
    group: dict[str, nn.Parameter] = {}
    for block in blocks:
        group[block.name] = model.get_parameter(block.name)
        if sum(parameter.nbytes for parameter in group.values()) > LIMIT:
            yield group
            group = {}
    yield group


def _gradients(model: nn.Module, group: Mapping[str, nn.Parameter], loss: Callable[[], Tensor]) -> dict[str, Tensor]:
    """Return autograd's gradients of one loss; flags and `.grad` are afterwards what they were."""
    kept = {name: parameter.grad for name, parameter in group.items()}
    with frozen(model):
        try:
            try:
                for parameter in group.values():
                    parameter.grad = None
                    parameter.requires_grad_(True)
                value = loss()
                if value.requires_grad:
                    value.backward()
                return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in group.items()}
            finally:
                _restore(group, kept)
        finally:
            _restore(group, kept)  # again, for Ctrl-C may have cut the first time short


def _restore(group: Mapping[str, nn.Parameter], kept: Mapping[str, Tensor | None]) -> None:
    for name, parameter in group.items():
        parameter.requires_grad_(False)
        parameter.grad = kept[name]


def _check_loss(number: int, together: float, apart: float, tolerance: Tolerance) -> None:
    if abs(together - apart) > tolerance.loss * max(abs(apart), 0.1):
        raise ValueError(
            f"sample {number + 1} of the first batch has the loss {together:.6g} there and {apart:.6g} alone: the "
            f"model's results depend on what else is in a batch; set --batch_size 1, or {MEND}"
        )


class _Block(NamedTuple):
    """A block's captured gradients [n, rows, cols] of some samples, the lengths of all samples' terms, and of their
    gradients over all blocks [all]."""

    name: str
    found: Float[Tensor, "n rows cols"]
    lengths: Float[Tensor, " all"] | None
    whole: Float[Tensor, " all"]

    def check(self, own: Tensor, numbers: Sequence[int], tolerance: Tolerance) -> None:
        """Compare with autograd's own, [n, ...]; samples whose own is not finite are passed over."""
        own = own.reshape(self.found.shape).to(self.found)
        off, size = _norms(self.found - own), _norms(own)
        allowed = torch.maximum(tolerance.gradient * size, tolerance.whole * self.whole[numbers].to(size))
        if self.lengths is not None:
            allowed = torch.maximum(allowed, tolerance.terms * self.lengths[numbers].to(allowed))
        wrong = size.isfinite() & ~(off <= allowed)
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0, 0])
            raise ValueError(
                f"block {self.name}: its gradient as captured, on sample {numbers[row] + 1} of the first batch, is "
                f"{_share(off[row], size[row])} off autograd's own: {self._reason(own, tolerance)}; {MEND}"
            )

    def _reason(self, own: Tensor, tolerance: Tolerance) -> str:
        if not self.found.any():
            return "its weight is used without calling its module"
        whole = own.sum(0)
        if float((self.found.sum(0) - whole).norm()) <= tolerance.gradient * float(whole.norm()):
            return "the rows that its module reads are not in the order of the samples"
        return "its weight is also used without calling its module, or its module computes something else"


def _check_alone(
    model: nn.Module, blocks: Sequence[Block], captured: _Measured, number: int, loss: Callable[[], Tensor],
    tolerance: Tolerance,
) -> None:  # fmt: skip
    """Compare a sample's gradient over all blocks with the one it has alone."""
    off = size = terms = 0.0
    found = captured.factors()
    for group in _groups(model, blocks):
        own = _gradients(model, group, loss)
        for name in group:
            mine = found[name].select([number]).dense()[0]
            gradient = own.pop(name).reshape(mine.shape).to(mine)
            off, size = off + float((mine - gradient).square().sum()), size + float(gradient.square().sum())
            terms += float(captured.lengths[name][number]) ** 2 if name in captured.lengths else 0.0
    if off > max(tolerance.alone**2 * size, tolerance.terms**2 * terms):
        raise ValueError(
            f"the gradient of sample {number + 1} of the first batch is {_share(off**0.5, size**0.5)} off the one "
            f"it has alone: the model's results depend on what else is in a batch; set --batch_size 1, or {MEND}"
        )


def _share(off: Tensor | float, size: Tensor | float) -> str:
    return f"{float(off) / (float(size) or float(off)):.0%}"


def _norms(x: Float[Tensor, "n rows cols"]) -> Float[Tensor, " n"]:
    return torch.linalg.vector_norm(x.flatten(1), dim=1)
