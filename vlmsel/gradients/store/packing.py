"""From the factors of a batch to what a gradient store holds of it: projected, formed and rounded, on the CPU.

A rounding that would change the scores is refused: an entry that leaves the dtype's range, and float16 gradients so
small that the rounding errors of a block reach 1 % of the norm of all its gradients so far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vlmsel.gradients import Block, Factor
from vlmsel.gradients.factors import DenseFactor
from vlmsel.gradients.projection import Matrices, project, projected
from vlmsel.gradients.store.format import DTYPES, StoreSettings

Batch = Mapping[str, Factor] | Mapping[str, Tensor]  # per block a batch's gradients, or what `pack` made of them
LOST = 0.01  # greatest rounding error in float16


class Packer:
    """Packs batches for one store; remembers its projection matrices and how much rounding has cost."""

    def __init__(self, settings: StoreSettings) -> None:
        self.settings = settings
        self.dtype = DTYPES[settings.dtype]
        self._matrices: dict[str, Matrices] = {}
        self._rounding = {
            block.name: torch.zeros(2, dtype=torch.float64) for block in settings.blocks
        }  # ‖error‖², ‖g‖²

    def pack(self, uids: Tensor, factors: Mapping[str, Factor]) -> dict[str, Tensor]:
        """Return a batch's gradients as they are stored, [n, rows, cols] per block.

        Raises:
            ValueError: other blocks or shapes than the store's, or a gradient that is not finite or leaves the dtype's
                range; names the sample.
        """
        self._check_blocks(factors)
        return {block.name: self._packed(block, uids, factors[block.name]) for block in self.settings.blocks}

    def pack_targets(self, names: Sequence[str], gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return targets' gradients as they are stored, float32. [targets, rows, cols] per block

        Raises:
            ValueError: other blocks or shapes than the store's, or a gradient that is not finite.
        """
        self._check_blocks(gradients)
        return {block.name: self._target_stack(block, names, gradients[block.name]) for block in self.settings.blocks}

    def as_packed(self, uids: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Pack a batch unless that was done before.

        Raises:
            ValueError: as `pack`, or what was packed is of another store.
        """
        tensors = {name: each for name, each in batch.items() if isinstance(each, Tensor)}
        if not tensors:
            return self.pack(uids, batch)  # type: ignore[arg-type]
        expected = {block.name: (self.dtype, (len(uids), block.rows, block.cols)) for block in self.settings.stored}
        if {name: (each.dtype, tuple(each.shape)) for name, each in tensors.items()} != expected:
            raise ValueError("packed gradients are not of this store's blocks, dtype or projection; pack them with it")
        return tensors

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

    def _check_blocks(self, given: Mapping[str, object]) -> None:
        differ = sorted(set(given) ^ {block.name for block in self.settings.blocks})
        if differ:
            raise ValueError(f"gradients and store have different blocks: {', '.join(differ)} only on one side")

    def _packed(self, block: Block, uids: Tensor, factor: Factor) -> Tensor:
        found, expected = [factor.samples, factor.rows, factor.cols], [len(uids), block.rows, block.cols]
        if found != expected:
            raise ValueError(f"block {block.name}: gradients have shape {found}, expected {expected}")
        small = projected(factor, self._matrices_of(block, factor.values))
        packed = torch.empty(small.samples, small.rows, small.cols, dtype=self.dtype)
        start = 0
        for piece in small.pieces():
            span = slice(start, start + len(piece))
            packed[span] = self._rounded(block.name, uids[span], piece)
            start += len(piece)
        return packed

    def _matrices_of(self, block: Block, like: Tensor) -> Matrices:
        """Draw a block's matrices once and keep them where its gradients are."""
        if block.name not in self._matrices:
            drawn = self.settings.projection.matrices(block) if self.settings.projection else Matrices(None, None)
            self._matrices[block.name] = drawn.to(like)
        return self._matrices[block.name]

    def _rounded(self, block: str, uids: Tensor, piece: Tensor) -> Tensor:
        _check_finite(DenseFactor(piece).finite(), uids, f"on block {block} is not finite; leave the sample out")
        rounded = piece.to(self.dtype)
        mend = "bfloat16 or float32" if self.dtype == torch.float16 else "float32"
        what = f"on block {block} leaves the range of {self.settings.dtype}; use dtype {mend}"
        _check_finite(torch.isfinite(rounded).flatten(1).all(1), uids, what)
        if self.dtype == torch.float16:
            norms = [torch.linalg.vector_norm(x, dtype=torch.float64) for x in (rounded.to(piece) - piece, piece)]
            self._rounding[block] += torch.stack(norms).square().cpu()
        return rounded

    def _target_stack(self, block: Block, names: Sequence[str], gradients: Tensor) -> Tensor:
        expected = [len(names), block.rows, block.cols]
        if list(gradients.shape) != expected:
            raise ValueError(f"block {block.name}: targets have shape {list(gradients.shape)}, expected {expected}")
        dense = Factor.from_dense(gradients.detach()).dense()
        stack = project(dense, self._matrices_of(block, dense).to(dense)).float().cpu()
        finite = DenseFactor(stack).finite()
        if not bool(finite.all()):
            name = names[int((~finite).nonzero()[0, 0])]
            raise ValueError(f"target {name}: its gradient on block {block.name} is not finite; leave the target out")
        return stack.contiguous()


def batch_size(batch: Batch) -> int:
    """Return the number of samples in a batch.

    Raises:
        ValueError: it has no block.
    """
    if not batch:
        raise ValueError("a batch without blocks has no gradients; give those of the store's blocks")
    first = next(iter(batch.values()))
    return len(first) if isinstance(first, Tensor) else first.samples  # type: ignore[attr-defined]


def _check_finite(finite: Tensor, uids: Tensor, what: str) -> None:
    if not bool(finite.all()):
        raise ValueError(f"the gradient of sample {int(uids[int((~finite).nonzero()[0, 0])])} {what}")
