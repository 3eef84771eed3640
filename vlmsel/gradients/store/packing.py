"""From the factors of a batch to what a gradient store holds of it: projected, formed and rounded, on the CPU.

A rounding that would change the scores is refused: an entry that leaves the dtype's range, and float16 gradients so
small that the rounding errors of a block reach 1 % of the norm of all its gradients so far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from vlmsel.gradients import Block, DenseFactor, Factor
from vlmsel.gradients.projection import Matrices, projected
from vlmsel.gradients.store.format import StoreSettings

LOST = 0.01  # greatest rounding error in float16


class Packer:
    """Packs batches for one store; remembers its projection matrices and how much rounding has cost."""

    def __init__(self, settings: StoreSettings) -> None:
        self.settings = settings
        self._matrices: dict[str, Matrices] = {}
        self._rounding = {b.name: torch.zeros(2, dtype=torch.float64) for b in settings.blocks}  # ‖error‖², ‖g‖²

    def pack(
        self, uids: Int[Tensor, " n"], losses: Float[Tensor, " n"], factors: Mapping[str, Factor]
    ) -> dict[str, Shaped[Tensor, "n ..."]]:
        """Return what a shard holds of a batch: uids, losses and, per block, gradients [n, rows, cols].

        Raises:
            ValueError: a gradient is not finite or leaves the dtype's range; names the sample.
        """
        packed = {"uids": uids.cpu(), "losses": losses.detach().float().cpu()}
        return packed | {block.name: self._packed(block, uids, factors[block.name]) for block in self.settings.blocks}

    def pack_targets(
        self, names: Sequence[str], gradients: Mapping[str, Float[Tensor, "targets _ _"]]
    ) -> dict[str, Float[Tensor, "targets _ _"]]:
        """Return targets' gradients, [targets, rows, cols] per block, as they are stored: float32.

        Raises:
            ValueError: a gradient is not finite; names the target.
        """
        packed = {}
        for block in self.settings.blocks:
            factor = self._projected(block, Factor.from_dense(gradients[block.name].detach()))
            _check_all(factor.finite(), names, "target {}: its gradient", block, "is not finite; leave the target out")
            packed[block.name] = factor.dense().float().cpu().contiguous()
        return packed

    def check_rounding(self) -> None:
        """Refuse to go on where float16 has lost too much of a block's gradients.

        Raises:
            ValueError: names the block.
        """
        for name, sums in self._rounding.items():
            lost, whole = sums.sqrt().tolist()
            if lost > LOST * whole:
                raise ValueError(
                    f"block {name}: gradients are too small for float16, whose rounding errors make "
                    f"{100 * lost / whole:.2g} % of their norm; use dtype bfloat16 or float32"
                )

    def _projected(self, block: Block, factor: Factor) -> Factor:
        """Project a block's gradients by matrices that are drawn once and kept where its gradients are."""
        if self.settings.projection is None:
            return factor
        drawn = self._matrices.get(block.name) or self.settings.projection.matrices(block)
        self._matrices[block.name] = drawn.to(factor.values)
        return projected(factor, self._matrices[block.name])

    def _packed(self, block: Block, uids: Tensor, factor: Factor) -> Tensor:
        pieces, start = [], 0
        for piece in self._projected(block, factor).pieces():
            pieces.append(self._rounded(block, uids[start : start + len(piece)].tolist(), piece))
            start += len(piece)
        return torch.cat(pieces)

    def _rounded(self, block: Block, uids: list[int], piece: Tensor) -> Tensor:
        sample, dtype = "the gradient of sample {}", self.settings.torch_dtype
        _check_all(DenseFactor(piece).finite(), uids, sample, block, "is not finite; leave the sample out")
        rounded = piece.to(dtype)
        mend = "bfloat16 or float32" if dtype == torch.float16 else "float32"
        what = f"leaves the range of {self.settings.dtype}; use dtype {mend}"
        _check_all(torch.isfinite(rounded).flatten(1).all(1), uids, sample, block, what)
        if dtype == torch.float16:
            norms = [torch.linalg.vector_norm(x, dtype=torch.float64) for x in (rounded.to(piece) - piece, piece)]
            self._rounding[block.name] += torch.stack(norms).square().cpu()
        return rounded.cpu()


def _check_all(fine: Tensor, names: Sequence[object], whose: str, block: Block, what: str) -> None:
    if not bool(fine.all()):
        raise ValueError(f"{whose.format(names[fine.tolist().index(False)])} on block {block.name} {what}")
