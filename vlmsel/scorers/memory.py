"""Fit samples' gradients kept in memory, for the scorers that are exact only with all of them at hand."""

from __future__ import annotations

import torch
from torch import Tensor

from vlmsel.gradients import Factor
from vlmsel.scorers.base import Accumulator


class KeptGradients(Accumulator):
    """Keeps every fit sample's gradient, flattened: 4·n·rows·cols bytes (twice that in float64)."""

    def __init__(self, targets: Tensor) -> None:
        super().__init__(targets)
        self._parts: list[Tensor] = []

    def update(self, factor: Factor) -> None:
        self.count += factor.samples
        self._parts.append(factor.dense().flatten(1).to(self.targets))

    def gradients(self) -> Tensor:
        """Return them all, [n, rows·cols]."""
        parts = [self.targets.new_zeros(0, self.entries), *self._parts]
        self._parts = [torch.cat(parts)]
        return self._parts[0]

    def mean_square_norm(self) -> float:
        """Return 1/n Σ ‖g‖²: the trace of the FIM, which bounds its spectrum."""
        return float(self.gradients().double().square().sum()) / max(1, self.count)

    def state(self) -> dict[str, Tensor]:
        return {"gradients": self.gradients()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._parts = [state["gradients"].to(self.targets)]
        self.count = len(state["gradients"])
