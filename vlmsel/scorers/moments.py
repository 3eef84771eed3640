"""Adam's own second moments as a statistic: what a training with `--settings.moments true` left in moments.safetensors,
v̂ = v / (1 - β₂ᵗ) by parameter, float32. Nothing is gathered.
"""

from __future__ import annotations

from collections.abc import Hashable

from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vlmsel.gradients import Factor
from vlmsel.scorers.statistics import BlockTargets, State, Statistic

FLOOR = 1e-6  # of the block's mean moment: what counts as having it, lest an entry that never moved decide everything


class Moments(Statistic):
    """1 / √v̂ of a block, [rows, cols], None where nothing of it has moved; not read for planning.

    Raises:
        ValueError: the file is damaged, or has no moments of this block.
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
        mend = "train again with --settings.moments true, or score the blocks that were trained"
        try:
            with safe_open(self.path, "pt") as file:
                if self.block.name not in file.keys():  # noqa: SIM118
                    raise ValueError(
                        f"{self.path}: no moments of {self.block.name}, which was not trained there; {mend}"
                    )
                found = file.get_tensor(self.block.name)
        except (SafetensorError, FileNotFoundError) as problem:
            raise ValueError(f"{self.path}: no file of moments ({problem}); {mend}") from None
        if found.numel() != self.block.entries:
            raise ValueError(f"{self.path}: moments of {self.block.name} have shape {list(found.shape)}; {mend}")
        return found.reshape(self.block.rows, self.block.cols).to(self.block.targets)

    @property
    def key(self) -> Hashable:
        return "moments", self.path

    @property
    def done(self) -> bool:
        return True

    def gather(self, factor: Factor) -> None:
        """Nothing."""

    def tensors(self) -> State:
        return {}
