"""Where gradients come from: a subject that runs batches, a gradient store, or arrays in memory.

A source has its samples in batches. Whoever wants something of their gradients says what by a `Reducer`, which is given
each batch's gradients block by block and makes a result of them:

    with source.passing(reducer) as read:
        for pieces in read(numbers):      # one after the other, the batches of these numbers
            for result in pieces:         # one, or several where a batch did not fit into memory
                ...

A sample whose loss or gradient is not finite has a code that says so; the other samples' numbers do not change.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from vlmsel.gradients import Block, Factor, capture
from vlmsel.gradients.capture import Capture
from vlmsel.gradients.store.reader import GradientStore
from vlmsel.models.subject import Subject
from vlmsel.scoring.batches import BatchPlan
from vlmsel.scoring.halving import Budget, in_pieces

T = TypeVar("T")
Read = Callable[[Sequence[int]], Iterator[Iterator[T]]]
LeftOut = dict[int, str]  # uid -> why

FINE, NO_LOSS, NO_GRADIENT, NO_MEMORY = range(4)
REASONS = {
    NO_LOSS: "the loss is not finite",
    NO_GRADIENT: "the gradient is not finite",
    NO_MEMORY: "it does not fit into memory even alone",
}


class Reducer(ABC, Generic[T]):
    """What is made of a batch's gradients, as they come.

    `whole` says that it takes each block's gradient in one piece, once; otherwise a weight that is used several times
    comes in parts, whose sum is the gradient, as soon as the backward has made them. Whole gradients come in the form
    that is smaller unless it looks at `tokens`. Where it takes no `gradients`, a model only runs forward, for losses.
    """

    whole: bool = False
    gradients: bool = True
    tokens: bool = False

    @abstractmethod
    def start(self, uids: Tensor) -> None:
        """Begin with a batch, and forget what was taken of another that did not come to its end."""

    @abstractmethod
    def take(self, block: str, factor: Factor) -> None:
        """Take a block's gradients of all samples of the batch."""

    @abstractmethod
    def finish(self, uids: Tensor, losses: Tensor, code: int, sizes: Sequence[int]) -> T:
        """Return the result; `losses` are NaN, and nothing was taken, where `code` is not `FINE`.

        `sizes` are those of the batches that the samples were run in.
        """


class Gradients(NamedTuple):
    """Some samples: uids [n], each one's loss [n], the factors of its gradient at every block, what is known to be
    wrong with all of them, and the sizes of the batches that they were run in."""

    uids: Tensor
    losses: Tensor
    factors: dict[str, Factor]
    code: int
    sizes: Sequence[int]

    def codes(self) -> Tensor:
        """Tell what is wrong with each sample, one of the codes of `REASONS` or `FINE`. [n] int8 on the CPU"""
        keep = torch.isfinite(self.losses)
        codes = torch.where(keep, self.code, self.code or NO_LOSS)
        for factor in self.factors.values():
            codes = torch.where(keep & ~factor.finite().to(keep.device), NO_GRADIENT, codes)
        return codes.to(torch.int8).cpu()

    def clean(self) -> tuple[Gradients, LeftOut]:
        """Return the samples that nothing is wrong with, and why the others are left out."""
        codes = self.codes()
        keep = (codes == FINE).to(self.losses.device)
        if bool(keep.all()):
            return self, {}
        factors = {name: factor.select(keep) for name, factor in self.factors.items()}
        sizes = [int(part.sum()) for part in keep.split(list(self.sizes))]
        return Gradients(self.uids[keep], self.losses[keep], factors, FINE, sizes), left_out(self.uids, codes)


def left_out(uids: Tensor, codes: Tensor) -> LeftOut:
    """Return why samples are left out, those whose code is not `FINE`."""
    pairs = zip(uids.tolist(), codes.tolist(), strict=True)
    return {uid: REASONS[code] for uid, code in pairs if code != FINE}


class Collect(Reducer[Gradients]):
    """Keeps these blocks' factors, in their order; those with tokens as they came where `tokens` are asked for."""

    whole = True

    def __init__(self, blocks: Sequence[Block], tokens: bool = False) -> None:
        self.tokens, self._names = tokens, [block.name for block in blocks]

    def start(self, uids: Tensor) -> None:
        self.factors: dict[str, Factor] = {}

    def take(self, block: str, factor: Factor) -> None:
        self.factors[block] = factor

    def finish(self, uids: Tensor, losses: Tensor, code: int, sizes: Sequence[int]) -> Gradients:
        found, self.factors = {name: self.factors[name] for name in self._names}, {}
        return Gradients(uids, losses, found, code, sizes)


class GradientSource(ABC):
    """Samples in batches, with every block's per-sample gradients.

    Attributes:
        blocks: the blocks, in the sizes that gradients have.
        device: where gradients are.
        sizes: samples of each batch.
        windows: whether a batch is a window of many samples, which fills a file of its own.
    """

    windows: bool = False
    blocks: Sequence[Block]
    device: torch.device
    sizes: Sequence[int]

    @abstractmethod
    def samples(self, numbers: Sequence[int]) -> Tensor:
        """Return what tells the samples of these batches from others, in order. [n] int64"""

    @abstractmethod
    def passing(self, reducer: Reducer[T]) -> AbstractContextManager[Read[T]]:
        """Give what reads batches by number within the block, and makes of each what the reducer makes."""

    def digest(self, numbers: Sequence[int]) -> str:
        """Hash which samples these batches are made of."""
        sizes = [self.sizes[number] for number in numbers]
        return hashlib.sha256(repr((self.samples(numbers).tolist(), sizes)).encode()).hexdigest()

    def gradients(self, tokens: bool = False) -> AbstractContextManager[Read[Gradients]]:
        """Give what reads batches by number as factors, unformed where `tokens` are looked at."""
        return self.passing(Collect(self.blocks, tokens))

    def shapes(self) -> dict[str, tuple[int, int]]:
        """Return the rows and columns of every block."""
        return {block.name: (block.rows, block.cols) for block in self.blocks}


class ModelSource(GradientSource):
    """One forward and backward per batch of a plan, in halves where a batch does not fit; hooks stay for a pass.

    Args:
        subject: whose losses are differentiated.
        blocks: those that are looked at.
        plan: the samples in batches.
        budget: the most tokens that fit; shared by the passes of a run.
    """

    def __init__(self, subject: Subject, blocks: Sequence[Block], plan: BatchPlan, budget: Budget) -> None:
        self.subject, self.blocks, self.plan, self.budget = subject, list(blocks), plan, budget
        self.device, self.sizes, self.windows = subject.device, plan.sizes, plan.cut is not None

    def samples(self, numbers: Sequence[int]) -> Tensor:
        return torch.tensor([position for number in numbers for position in self.plan.groups[number]])

    @contextmanager
    def passing(self, reducer: Reducer[T]) -> Iterator[Read[T]]:
        self.subject.module.eval()
        take = partial(_take_whole, reducer) if reducer.whole else reducer.take
        with capture(self.subject.module, self.blocks, sink=take, whole=reducer.whole) as captured:
            yield partial(self._read, captured, reducer)

    def _read(self, captured: Capture, reducer: Reducer[T], numbers: Sequence[int]) -> Iterator[Iterator[T]]:
        work, give_up = partial(self._work, captured, reducer), partial(self._give_up, captured, reducer)
        for group in self.plan.by_group(numbers):
            yield (result for batch in group for _, result in in_pieces(batch, work, give_up, self.budget))

    def _work(self, captured: Capture, reducer: Reducer[T], batch: Any) -> T:
        reducer.start(batch.uids)
        if not reducer.gradients:
            with torch.no_grad():
                return reducer.finish(batch.uids, self.subject.losses(batch), FINE, [len(batch.uids)])
        captured.start(len(batch.uids), self.subject.row_samples(batch))
        losses = self._backward(captured, batch)
        _hand_over(captured, reducer)
        return reducer.finish(batch.uids, losses, FINE, [len(batch.uids)])

    def _backward(self, captured: Capture, batch: Any) -> Tensor:
        """Run a batch and return its losses [n]; losses that are not finite take no part in the backward."""
        losses = self.subject.losses(batch)
        finite = torch.isfinite(losses)
        if finite.any():
            torch.where(finite, losses, torch.zeros_like(losses)).sum().backward()
        captured.check()
        return losses.detach()

    def _give_up(self, captured: Capture, reducer: Reducer[T], batch: Any) -> T:
        reducer.start(batch.uids)
        captured.start(len(batch.uids))
        _hand_over(captured, reducer)
        nan = torch.full((len(batch.uids),), torch.nan, device=batch.uids.device)
        return reducer.finish(batch.uids, nan, NO_MEMORY, [len(batch.uids)])


def _hand_over(captured: Capture, reducer: Reducer[Any]) -> None:
    """Give the reducer the whole gradients that it does not have yet, and hold on to nothing."""
    if reducer.whole:
        for block, factor in captured.factors().items():
            _take_whole(reducer, block, factor)
    captured.start(None)


def _take_whole(reducer: Reducer[Any], block: str, factor: Factor) -> None:
    """Give the reducer a whole gradient in the form it looks at."""
    reducer.take(block, factor if reducer.tokens else factor.compact())


class StoreSource(GradientSource):
    """Some samples of a gradient store; a batch is a shard, of what of it is meant.

    Args:
        store: the store.
        keep: uids of the samples that are meant.
    """

    def __init__(self, store: GradientStore, keep: Collection[int]) -> None:
        self.store, self.blocks, self.device = store, store.blocks, torch.device(store.device)
        wanted = torch.tensor(sorted(keep), dtype=torch.int64)
        pairs = [(shard, torch.isin(shard.uids, wanted)) for shard in store.shards]
        self._parts = [(shard, mask) for shard, mask in pairs if bool(mask.any())]
        self.sizes = [int(mask.sum()) for _, mask in self._parts]

    def samples(self, numbers: Sequence[int]) -> Tensor:
        parts = [self._parts[number] for number in numbers]
        return torch.cat([torch.zeros(0, dtype=torch.int64), *(shard.uids[mask] for shard, mask in parts)])

    @contextmanager
    def passing(self, reducer: Reducer[T]) -> Iterator[Read[T]]:
        yield partial(self._read, reducer)

    def _read(self, reducer: Reducer[T], numbers: Sequence[int]) -> Iterator[Iterator[T]]:
        for number in numbers:
            yield iter([self._work(reducer, number)])

    def _work(self, reducer: Reducer[T], number: int) -> T:
        shard, mask = self._parts[number]
        uids, losses = (tensor[mask].to(self.device) for tensor in (shard.uids, shard.losses()))
        reducer.start(uids)
        for block in self.blocks:
            reducer.take(block.name, shard.factor(block.name, mask))
        return reducer.finish(uids, losses, FINE, [int(part.sum()) for part in mask.split(shard.sizes)])


class ArraySource(GradientSource):
    """Gradients that are in memory already, [n, rows, cols] per block, as one batch; uids are their positions."""

    def __init__(self, gradients: Mapping[str, Tensor]) -> None:
        self.factors = {name: Factor.from_dense(tensor) for name, tensor in gradients.items()}
        self.blocks = [Block(name, "", factor.rows, factor.cols) for name, factor in self.factors.items()]
        first = next(iter(self.factors.values()))
        self.device, self.sizes = first.values.device, [first.samples]

    def samples(self, numbers: Sequence[int]) -> Tensor:
        return torch.arange(sum(self.sizes[number] for number in numbers))

    @contextmanager
    def passing(self, reducer: Reducer[T]) -> Iterator[Read[T]]:
        yield lambda numbers: (iter([self._work(reducer)]) for _ in numbers)

    def _work(self, reducer: Reducer[T]) -> T:
        uids = torch.arange(self.sizes[0], device=self.device)
        reducer.start(uids)
        for name, factor in self.factors.items():
            reducer.take(name, factor)
        return reducer.finish(uids, torch.zeros(len(uids), device=self.device), FINE, self.sizes)
