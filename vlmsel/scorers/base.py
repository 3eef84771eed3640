"""What a scorer is: frozen hyper-parameters and one method that starts an accumulator for a block.

Every scorer is an influence I(i, t) = -Σ_l ⟨P_l v_t^l, g_i^l⟩ (lowest = most helpful); scorers differ in P. An
accumulator sees the gradients of the fit samples batch by batch and then gives h = P v for all targets of its block. A
block on which every fit sample's gradient is zero has P v = 0 for every scorer that looks at curvature or scale.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from vlmsel.gradients import Factor

Zeros = Callable[[tuple[int, ...], torch.dtype], Tensor]  # (shape, dtype) -> zeros that lie somewhere


def zeros_on(device: torch.device | str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return zeros in the memory of a device."""
    return torch.zeros(shape, dtype=dtype, device=device)


class Accumulator(ABC):
    """Gathers what one scorer needs of one block; tensors only, so that a run can be stopped and resumed.

    Attributes:
        targets: v, [targets, rows, cols], float32 or better.
        count: fit samples seen so far.
        details: numbers worth recording, JSON-able; filled by `solve`.
        zeros: makes the tensors to gather in, where there is room for them; on the targets' device unless `place` says
            otherwise. An accumulator whose tensors are all small may make its own.
    """

    def __init__(self, targets: Tensor) -> None:
        self.targets = targets if targets.dtype == torch.float64 else targets.float()
        self.count = 0
        self.details: dict[str, Any] = {}
        self.zeros: Zeros = functools.partial(zeros_on, self.targets.device)

    def place(self, zeros: Zeros) -> None:
        """Say where what is gathered shall lie: on the device, in host memory or on disk; before anything is gathered.

        It concerns accumulators that allocate by `self.zeros`, whose scorer says `follows_place`.
        """
        self.zeros = zeros

    @abstractmethod
    def update(self, factor: Factor) -> None:
        """Take in the gradients of one batch of fit samples."""

    @abstractmethod
    def solve(self) -> Tensor:
        """Return h = P v, [targets, rows, cols], on the targets' device; may use up what was gathered."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Return what was gathered so far: the accumulator's own tensors, to be written or copied before it goes on."""

    @abstractmethod
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from a copy of what `state` returned."""

    @property
    def done(self) -> bool:
        """Whether it will take in no more, whatever comes."""
        return False

    @property
    def entries(self) -> int:
        """Number of entries of the block."""
        return self.targets.shape[1] * self.targets.shape[2]


class Scorer(ABC):
    """A scorer; final subclasses are frozen dataclasses of hyper-parameters with a `name`, the column prefix."""

    name: str

    @property
    def uses_gradients(self) -> bool:
        """Whether it has an accumulator; a scorer without one has `draw(uids, targets)` instead (`Random`)."""
        return True

    @property
    def needs_fit(self) -> bool:
        """Whether P depends on the fit samples; where no scorer's does, there is no curvature pass."""
        return True

    @property
    def needs_mean_square(self) -> bool:
        """Whether the mean squared gradient entry must be known before the first update."""
        return False

    @property
    def keeps_samples(self) -> bool:
        """Whether its accumulator keeps every fit sample's gradient: 4·n·rows·cols bytes per block."""
        return False

    @property
    def gathers(self) -> Hashable | None:
        """A name for what its accumulator gathers, where it is equal for other settings or scorers and `state` is all
        of it; None where it is the scorer's own. Scorers of equal names are served by one accumulator."""
        return None

    @property
    def depends_on_batches(self) -> bool:
        """Whether P depends on the order and size of the batches, as that of a stochastic recursion does."""
        return False

    @property
    def normalised(self) -> bool:
        """Whether its scores are divided by the norms of P v and of the sample's gradient, over all blocks together."""
        return False

    @property
    def follows_place(self) -> bool:
        """Whether its accumulator gathers in what `Accumulator.zeros` makes, and brings it back to solve."""
        return False

    @property
    def holds(self) -> str:
        """What the accumulators hold, one per block, in the plural: for messages."""
        return "accumulators"

    def held_bytes(self, rows: int, cols: int, targets: int, samples: int, itemsize: int = 4) -> int:
        """Return the bytes that the accumulator of a block [rows, cols] holds at the end of the curvature pass.

        Unless a scorer knows better: every fit sample's gradient where `keeps_samples`, else as much as the targets.

        Args:
            rows, cols: shape of the block.
            targets: number of targets.
            samples: number of fit samples.
            itemsize: bytes of a number of the targets: 4, or 8 in float64.
        """
        return itemsize * rows * cols * (samples if self.keeps_samples else targets)

    def solve_bytes(self, rows: int, cols: int, targets: int, samples: int, itemsize: int = 4) -> int:
        """Return the bytes that a block takes on the targets' device beyond what is held, while it is solved or takes
        in a batch: an upper bound, h = P v included. As much as the targets unless a scorer knows better."""
        return itemsize * rows * cols * targets

    @abstractmethod
    def accumulator(self, targets: Tensor, mean_square: float | None = None) -> Accumulator:
        """Start an accumulator for one block.

        Args:
            targets: mean gradient of each target, [targets, rows, cols].
            mean_square: mean over fit samples and entries of g², where `needs_mean_square`.
        """


def needed(mean_square: float | None, name: str) -> float:
    """Return the mean square that a scorer was to be given."""
    if mean_square is None:
        raise ValueError(f"{name} needs the mean squared gradient entry before its first update")
    return mean_square


def check_damped(damping: float, factor: Factor) -> None:
    """Refuse gradients on a block where λ was measured as 0: on samples that all have none there."""
    if damping == 0 and bool((factor.sq_norm() > 0).any()):
        raise ValueError(
            f"a block [{factor.rows}, {factor.cols}] has gradients, but the samples that its damping was measured on "
            "have none: measure the damping on more samples"
        )
