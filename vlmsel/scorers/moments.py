"""Adam's own second moments as a statistic: what a training with `--settings.moments true` left in moments.safetensors,
v̂ = v / (1 - β₂ᵗ) by parameter, float32. Nothing is gathered.
"""

from __future__ import annotations

from collections.abc import Hashable

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vlmsel.gradients import Factor
from vlmsel.scorers.statistics import BlockTargets, State, Statistic

MEND = "train with --settings.moments true, which leaves moments.safetensors in the run folder"
FLOOR = 1e-6  # of the block's mean moment: what counts as having it, lest an entry that never moved decide everything


class Moments(Statistic):
    """1 / √v̂ of a block, [rows, cols], None where nothing of it has moved; not read for planning.

    Raises:
        ValueError: the file is damaged, or its moments are not those of this block.
    """

    noun = "moments"

    def __init__(self, block: BlockTargets, path: str) -> None:
        super().__init__(block)
        self.path = path
        self.scale: Float[Tensor, "rows cols"] | None = None
        if not block.targets.is_meta:
            moments = self._read().clamp_min(0)
            floor = FLOOR * float(moments.mean())
            self.scale = moments.clamp_min(floor).rsqrt() if floor > 0 else None

    def _read(self) -> Tensor:
        name, shape = self.block.name, (self.block.rows, self.block.cols)
        try:
            with safe_open(self.path, "pt") as file:
                found = file.get_tensor(name) if name in file.keys() else None  # noqa: SIM118
        except (SafetensorError, OSError) as problem:
            raise ValueError(f"{self.path}: no file of moments, or damaged ({problem}); {MEND}") from None
        if found is None:
            raise ValueError(f"{self.path}: no moments of {name}; score the blocks that were trained (--blocks)")
        if tuple(found.shape) not in (shape, shape[shape[0] == 1 :]):
            raise ValueError(
                f"{self.path}: moments of {name} have shape {list(found.shape)}, its gradients {list(shape)}; take "
                "those of this model, and for stored gradients a store without --store_projection"
            )
        if not torch.isfinite(found).all():
            raise ValueError(f"{self.path}: moments of {name} are not finite; {MEND}")
        return found.reshape(shape).to(self.block.targets)

    @property
    def key(self) -> Hashable:
        return "moments", self.path

    @property
    def done(self) -> bool:
        return True

    def gather(self, factor: Factor) -> None:
        """Nothing."""

    def tensors(self) -> State:
        return {}  # nothing to write or to add up

    def bytes(self, samples: int) -> int:
        return self.block.entries * self.block.dtype.itemsize
