"""What is gathered over the fit samples of one block, in one stream of batches.

    Gram            S = Σ_j g_jᵀ g_j on one side of the block, or of vec(g_j) for the FIM
    KeptGradients   every g_j
    SquareSum       Σ_j ‖g_j‖²
    SideSquares     Σ_j g_j² along rows and along columns
    Products        Σ_j ⟨v, g_j⟩ g_j / (λ + ‖g_j‖²) for every target v (DataInf)

A statistic is made of tensors only, so that a pass can be stopped and resumed (`state`, `load`) and dealt among
processes (`merge`). Statistics of one block with equal `key`s are gathered once, whatever scorers they are for.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from vlmsel.gradients import Factor
from vlmsel.solvers import sherman_morrison

Zeros = Callable[[tuple[int, ...], torch.dtype], Tensor]  # (shape, dtype) -> zeros that lie somewhere
State = dict[str, Shaped[Tensor, "..."]]


def zeros_on(device: torch.device | str, shape: tuple[int, ...], dtype: torch.dtype) -> Shaped[Tensor, "*shape"]:
    """Return zeros in the memory of a device."""
    return torch.zeros(shape, dtype=dtype, device=device)


@dataclass(frozen=True, eq=False)
class BlockTargets:
    """What is known of a block before the curvature pass.

    Attributes:
        targets: v, the mean gradient of each target, float32 or float64; on the device `meta` for planning.
        mean_square: mean over samples and entries of g², where a scorer asked for it.
        basis: the eigenbasis of its token moments (kronecker.Basis), where a scorer asked for it.
        name: of its parameter.
    """

    targets: Float[Tensor, "targets rows cols"]
    mean_square: float | None = None
    basis: Any = None
    name: str = ""

    @property
    def rows(self) -> int:
        """Rows of the block."""
        return self.targets.shape[1]

    @property
    def cols(self) -> int:
        """Columns of the block."""
        return self.targets.shape[2]

    @property
    def entries(self) -> int:
        """Number of entries of the block."""
        return self.rows * self.cols

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of what is gathered, unless a scorer asks for another."""
        return self.targets.dtype

    def damping(self, relative: float, name: str) -> float:
        """Return λ = relative · mean square.

        Raises:
            ValueError: the mean square was not measured for the scorer `name`.
        """
        if self.mean_square is None:
            raise ValueError(f"{name} needs the mean squared gradient entry before its first update")
        return relative * self.mean_square


class Statistic(ABC):
    """What is gathered over the fit samples of one block.

    Class attributes:
        noun: what several of them are called, for messages.
        ordered: it depends on the order and size of the batches: every process must see all of them.
        tokens: it looks at the tokens that a gradient is summed over, which a formed gradient has lost.
        movable: its tensors are made by `zeros`, so that they may lie in other memory than the targets.

    Attributes:
        block: what was known of the block when it was started.
        count: samples taken in.
        zeros: makes the tensors to gather in, on the targets' device unless placed elsewhere.
        spendable: no one needs it any more once it is solved, so that solving may use it up.
    """

    noun: ClassVar[str] = "statistics"
    ordered: ClassVar[bool] = False
    tokens: ClassVar[bool] = False
    movable: ClassVar[bool] = False

    def __init__(self, block: BlockTargets) -> None:
        self.block = block
        self.count = 0
        self.zeros: Zeros = functools.partial(zeros_on, block.targets.device)
        self.spendable = False

    @property
    def key(self) -> Hashable:
        """Return what is gathered: a name that equal statistics of one block share; by default it is like no other."""
        return id(self)

    @property
    def done(self) -> bool:
        """Whether it will take in no more, whatever comes."""
        return False

    def update(self, factor: Factor) -> None:
        """Take in the gradients of one batch; when memory runs out, nothing of it was taken in."""
        if not self.done:
            self.gather(factor)
            self.count += factor.samples

    @abstractmethod
    def gather(self, factor: Factor) -> None:
        """Add the gradients of one batch to the tensors; whatever allocates memory comes before the first change."""

    @abstractmethod
    def tensors(self) -> State:
        """Return its own tensors, which hold all that was gathered."""

    def state(self) -> State:
        """Return what was gathered so far, to be written or copied before it goes on."""
        return {"count": torch.tensor(self.count), **self.tensors()}

    def load(self, state: State) -> None:
        """Go on from a copy of what `state` returned."""
        self.count = int(state["count"])
        for name, tensor in self.tensors().items():
            tensor.copy_(state[name])

    def merge(self, state: State) -> None:
        """Take in what another process gathered: tensors are sums, unless a statistic says otherwise."""
        self.count += int(state["count"])
        for name, tensor in self.tensors().items():
            tensor.add_(state[name].to(tensor.device))

    def bytes(self, samples: int) -> int:
        """Return the bytes of its tensors after so many samples."""
        return sum(tensor.nbytes for tensor in self.tensors().values())


class Gram(Statistic):
    """S = Σ_j g_jᵀ g_j [cols, cols], Σ_j g_j g_jᵀ [rows, rows], or Σ_j vec(g_j) vec(g_j)ᵀ where `flat`.

    Args:
        block: the block.
        side: which of the first two; where `flat`, "cols", for a block of one row.
        flat: the FIM instead of the GFIM.
        dtype: of the sum; float64 forms every gradient, so that no product is rounded before it is summed. A sum of
            thousands of batches in float32 is off by some 1e-6 of its largest entries, more of λ far below them.
    """

    movable = True

    def __init__(
        self, block: BlockTargets, side: Literal["cols", "rows"], flat: bool = False, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(block)
        self.side, self.flat, self.dtype = side, flat, dtype or block.dtype
        self.size = block.entries if flat else block.cols if side == "cols" else block.rows
        self.noun = "FIM matrices" if flat else "GFIM matrices"  # type: ignore[misc]
        self._gram: Tensor | None = None
        self._spent = False

    @property
    def key(self) -> Hashable:
        return "gram", self.side, self.flat, self.dtype

    @property
    def gram(self) -> Shaped[Tensor, "d d"]:
        """The sum, made when it is first needed."""
        if self._spent:
            raise RuntimeError("the matrix of this block was used up when the block was solved; gather anew")
        if self._gram is None:
            self._gram = self.zeros((self.size, self.size), self.dtype)
        return self._gram

    def take(self) -> Shaped[Tensor, "d d"]:
        """Return the sum, and forget it where it is spendable."""
        gram = self.gram
        if self.spendable:
            self._gram, self._spent = None, True
        return gram

    def gather(self, factor: Factor) -> None:
        gram = self.gram
        if not self.flat and factor.values.dtype == gram.dtype:
            gram.add_(factor.gram(self.side).to(gram.device))
            return
        pieces = factor.pieces()
        start = list(islice(pieces, 2))
        if len(start) == 1 and gram.device == factor.values.device:
            self._add(start[0], gram)
        elif start:
            batch = factor.values.new_zeros(gram.shape, dtype=gram.dtype)  # all or nothing of several pieces
            for piece in chain(start, pieces):
                self._add(piece, batch)
            gram.add_(batch.to(gram.device))

    def _add(self, piece: Tensor, total: Tensor) -> None:
        tall = (piece.mT if self.side == "rows" else piece).to(total.dtype).reshape(-1, self.size)
        total.addmm_(tall.T, tall)

    def tensors(self) -> State:
        return {"gram": self.gram}

    def bytes(self, samples: int) -> int:
        return self.size**2 * self.dtype.itemsize


class KeptGradients(Statistic):
    """Every fit sample's gradient, flattened: 134 MB a sample for a 7B model with LoRA r = 64 on queries and values."""

    noun = "sets of kept gradients"
    movable = True

    def __init__(self, block: BlockTargets) -> None:
        super().__init__(block)
        self._parts: list[Tensor] = []
        self._spent = False

    @property
    def key(self) -> Hashable:
        return "gradients"

    def gather(self, factor: Factor) -> None:
        self._gathered().append(self._placed([factor.dense().flatten(1)]))

    def _placed(self, parts: list[Tensor]) -> Tensor:
        """Copy parts [some, rows·cols] into one tensor where gradients are kept."""
        return _filled(self.zeros((sum(map(len, parts)), self.block.entries), self.block.dtype), parts)

    def take(self) -> Float[Tensor, "n entries"]:
        """Return all gradients on the targets' device, and forget them where they are spendable."""
        parts, targets = self._gathered(), self.block.targets
        if self.spendable:
            self._parts, self._spent = [], True
        if len(parts) == 1 and parts[0].device == targets.device:
            return parts[0]
        return _filled(targets.new_empty(sum(map(len, parts)), self.block.entries), parts)

    def _gathered(self) -> list[Tensor]:
        if self._spent:
            raise RuntimeError("the gradients kept for this block were used up when it was solved; gather anew")
        return self._parts

    def tensors(self) -> State:
        if len(self._gathered()) != 1:
            self._parts = [self._placed(self._parts)]
        return {"gradients": self._parts[0]}

    def load(self, state: State) -> None:
        self._parts = [self._placed([state["gradients"]])]
        self.count = len(state["gradients"])

    def merge(self, state: State) -> None:
        if len(state["gradients"]):
            self._gathered().append(self._placed([state["gradients"]]))
        self.count += len(state["gradients"])

    def bytes(self, samples: int) -> int:
        return samples * self.block.entries * self.block.dtype.itemsize


class SquareSum(Statistic):
    """Σ_j ‖g_j‖²."""

    def __init__(self, block: BlockTargets) -> None:
        super().__init__(block)
        self.squares = block.targets.new_zeros((), dtype=torch.float64)  # on the device, so that no update waits

    @property
    def key(self) -> Hashable:
        return "squares"

    def gather(self, factor: Factor) -> None:
        self.squares += factor.sq_norm().double().sum()

    @property
    def mean_square(self) -> float:
        """The mean over samples and entries of g²; 0 for no sample."""
        return float(self.squares) / max(1, self.count * self.block.entries)

    def tensors(self) -> State:
        return {"squares": self.squares}


class SideSquares(Statistic):
    """Σ_j g_j², added up along each row, [rows], and along each column, [cols]."""

    def __init__(self, block: BlockTargets) -> None:
        super().__init__(block)
        self.rows = block.targets.new_zeros(block.rows, dtype=torch.float64)
        self.cols = block.targets.new_zeros(block.cols, dtype=torch.float64)

    @property
    def key(self) -> Hashable:
        return "side squares"

    def gather(self, factor: Factor) -> None:
        rows, cols = torch.zeros_like(self.rows), torch.zeros_like(self.cols)
        for piece in factor.pieces():
            squares = piece.square()
            rows += squares.sum((0, 2), dtype=torch.float64)
            cols += squares.sum((0, 1), dtype=torch.float64)
        self.rows += rows
        self.cols += cols

    @property
    def mean_square(self) -> float:
        """The mean over samples and entries of g²; 0 for no sample."""
        return float(self.rows.sum()) / max(1, self.count * self.block.entries)

    def tensors(self) -> State:
        return {"rows": self.rows, "cols": self.cols}


class Products(Statistic):
    """Σ_j ⟨v, g_j⟩ g_j / (λ + ‖g_j‖²) for every target v. [targets, rows, cols]"""

    def __init__(self, block: BlockTargets, damping: float) -> None:
        super().__init__(block)
        self.damping = damping
        self.total = torch.zeros_like(block.targets)

    @property
    def key(self) -> Hashable:
        return "products", self.damping

    def gather(self, factor: Factor) -> None:
        check_damped(self.damping, factor)
        weights = sherman_morrison.weights(factor.inner(self.block.targets), factor.sq_norm(), self.damping)
        self.total += factor.weighted_sum(weights)

    def tensors(self) -> State:
        return {"total": self.total}


def mean_square_norm(gradients: Float[Tensor, "n entries"]) -> float:
    """Return 1/n Σ ‖g‖², the trace of the FIM, which bounds its spectrum; 0 for no gradient.

    >>> mean_square_norm(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    12.5
    """
    parts = gradients.split(16)  # a few at a time, for they are copied to float64
    total = sum(torch.linalg.vector_norm(part, dtype=torch.float64).square() for part in parts)
    return float(total) / max(1, len(gradients))


def check_damped(damping: float, factor: Factor) -> None:
    """Refuse gradients on a block where λ was measured as 0: on samples that all have none there."""
    if damping == 0 and bool((factor.sq_norm() > 0).any()):
        raise ValueError(
            f"a block [{factor.rows}, {factor.cols}] has gradients, but the samples that its damping was measured on "
            "have none: measure the damping on more samples"
        )


def _filled(whole: Tensor, parts: list[Tensor]) -> Tensor:
    start = 0
    for part in parts:
        whole[start : start + len(part)].copy_(part)
        start += len(part)
    return whole
