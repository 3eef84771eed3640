"""Pools of random items for a tiny vision-language model, runs that can be stopped, and the plain twin of scoring."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import naive_scorers
import torch
from naive_gradients import loop_gradients
from tiny_models import random_ids
from torch import Tensor
from torch.utils.data import Dataset

from vlmsel.data.batches import Collator, Item, length_batches
from vlmsel.data.sample import Sample
from vlmsel.gradients import Block
from vlmsel.models.vlm import VLM
from vlmsel.scorers import DataInf, Exact, HyperINF, LiSSA, Scorer, TracIn
from vlmsel.scoring.batches import Batching, BatchPlan
from vlmsel.scoring.curvature import FitSources, Targets
from vlmsel.scoring.halving import Budget
from vlmsel.scoring.pool_pass import Scored, Share, score_pool
from vlmsel.scoring.source import ModelSource
from vlmsel.scoring.targets import TargetPlan, target_means
from vlmsel.scoring.virtual import EachTarget

COLLATE = Collator(258)
POOL = (1, 0, 2, 1, 0, 3, 1, 2)  # images per sample
Losses = Callable[[Any, Any], Tensor]  # (subject, batch) -> [n]


class Items(Dataset):
    """A list of encoded items as a data set."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, position: int) -> Item:
        return self.items[position]

    @property
    def uids(self) -> list[int]:
        return [item.uid for item in self.items]

    @property
    def samples(self) -> list[Sample]:
        return [Sample(item.uid, "text", (), ()) for item in self.items]

    def usable(self) -> list[int]:
        return list(range(len(self.items)))

    def lengths(self) -> list[int]:
        return [len(item.input_ids) for item in self.items]


class Changed:
    """A subject with other losses."""

    def __init__(self, subject: Any, losses: Losses | None) -> None:
        self._subject, self._losses = subject, losses

    def __getattr__(self, name: str) -> Any:
        return getattr(self._subject, name)

    def losses(self, batch: Any) -> Tensor:
        return self._subject.losses(batch) if self._losses is None else self._losses(self._subject, batch)


def tiny_items(images: Sequence[int] = POOL, dtype=torch.float32, seed: int = 0, first: int = 10) -> list[Item]:
    """Samples of different lengths with uids `first`, `first` + 3, ...; some pictures stand in several of them."""
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.randn(4, 3, 16, 16, generator=generator).to(dtype)
    items, used = [], 0
    for row, count in enumerate(images):
        ids, labels = random_ids(count, generator, 3 + 2 * (row % 4))
        places = [(used + i) % len(pictures) for i in range(count)]
        used += count
        names, pixels = tuple(f"{seed}/{i}.png" for i in places), tuple(pictures[i] for i in places)
        items.append(Item(first + 3 * row, ids, labels, names, pixels))
    return items


def tiny_plan(
    items: Sequence[Item],
    batch_size: int = 3,
    positions: Sequence[int] | None = None,
    device: Any = "cpu",
) -> BatchPlan:
    """Batches of like lengths, as the score command makes them."""
    positions = range(len(items)) if positions is None else positions
    groups = length_batches([len(items[i].input_ids) for i in positions], batch_size)
    return BatchPlan(Items(items), COLLATE, [[positions[i] for i in group] for group in groups], torch.device(device))


class Run:
    """Everything that scoring some items with a model reads; damping is measured on all fit samples.

    Args:
        model: the subject.
        items: the pool.
        targets: the targets' items.
        spec: the blocks.
        batch_size: samples per batch.
        fit: positions of the fit samples; all when None.
        losses: takes the place of the model's losses.
        plan: takes the place of the targets' own batches.
        columns: how many columns may stand for the target samples; None for none.
    """

    def __init__(
        self,
        model: VLM,
        items: Sequence[Item],
        targets: Mapping[str, Sequence[Item]],
        *,
        spec: str = "projector+lora",
        batch_size: int = 3,
        fit: Sequence[int] | None = None,
        losses: Losses | None = None,
        plan: TargetPlan | None = None,
        columns: int | None = None,
    ) -> None:
        self.subject, self.blocks, self.budget = Changed(model, losses), model.blocks(spec), Budget()
        self.pool, part = (self.source(tiny_plan(items, batch_size, chosen, model.device)) for chosen in (None, fit))
        self.fit = FitSources(part, part)
        sets = {name: Items(own) for name, own in targets.items()}
        self.plan = plan or TargetPlan.of(model, sets, Batching(10**6, batch_size))
        goal = self.source(self.plan.plan)
        each = None if columns is None else EachTarget(self.plan, goal, columns)
        self.targets = Targets(self.plan.names, lambda: target_means(self.plan, goal), each)

    def source(self, plan: BatchPlan) -> ModelSource:
        return ModelSource(self.subject, self.blocks, plan, self.budget)  # type: ignore[arg-type]

    def score(self, scorers: Sequence[Scorer], out: Path, share: Share = Share(), place: Any = "auto") -> Scored | None:  # noqa: B008
        return score_pool(self.pool, self.fit, self.targets, scorers, out, share, place)


class Stopped(Exception):
    """A run that was killed."""


def stopping(after: int) -> tuple[Losses, list[Any]]:
    """Losses that fail at call number `after`, and the batches that they were called with."""
    calls: list[Any] = []

    def losses(subject: Any, batch: Any) -> Tensor:
        calls.append(batch)
        if len(calls) > after:
            raise Stopped
        return subject.losses(batch)

    return losses, calls


def broken(item: Item, how: str) -> Item:
    """An item whose loss is NaN ("loss": nothing is supervised) or infinite with its pixels ("pixels")."""
    if how == "loss":
        return replace(item, labels=[-100] * len(item.labels))
    return replace(item, pixels=tuple(torch.full_like(pixel, float("inf")) for pixel in item.pixels), images=("inf",))


class _Overflow(torch.autograd.Function):
    """The identity, whose backward is infinite at the sample `row`."""

    @staticmethod
    def forward(ctx, losses, rows):
        ctx.save_for_backward(rows)
        return losses.clone()

    @staticmethod
    def backward(ctx, delta):
        (rows,) = ctx.saved_tensors
        return torch.where(rows, torch.full_like(delta, float("inf")), delta), None


def exploding(uid: int) -> Losses:
    """Losses whose gradient is infinite at one sample."""
    return lambda subject, batch: _Overflow.apply(subject.losses(batch), batch.uids == uid)


def loop(model: VLM, items: Sequence[Item], blocks: Sequence[Block]) -> dict[str, Tensor]:
    """Each item's gradients, from batches of one."""
    return loop_gradients(model, [COLLATE([item]) for item in items], lambda one, batch: one.losses(batch), blocks)


def loop_means(model: VLM, targets: Mapping[str, Sequence[Item]], blocks: Sequence[Block]) -> dict[str, Tensor]:
    """Each target's mean gradient. [targets, rows, cols] per block"""
    found = [loop(model, items, blocks) for items in targets.values()]
    return {block.name: torch.stack([one[block.name].mean(0) for one in found]) for block in blocks}


def scores_by_hand(
    gradients: Mapping[str, Tensor], targets: Mapping[str, Tensor], scorer: Scorer, fit: Sequence[int]
) -> Tensor:
    """Scores of all samples with P made from some of them, by the formulas alone. [targets, n]"""
    total = torch.zeros(())
    for name, dense in gradients.items():
        h = torch.stack([_by_hand(scorer, dense[list(fit)], v) for v in targets[name]])
        total = total - torch.einsum("krc,nrc->kn", h, dense)
    return total


def _by_hand(scorer: Scorer, g: Tensor, v: Tensor) -> Tensor:
    """P v of one target on one block; 0 where no fit sample has a gradient."""
    if isinstance(scorer, TracIn) and not scorer.block_scale:
        return v
    if not g.any():
        return torch.zeros_like(v)
    if isinstance(scorer, TracIn):
        return naive_scorers.tracin_block_scale(g, v)
    if isinstance(scorer, DataInf):
        return naive_scorers.datainf(g, v, scorer.damping)
    if isinstance(scorer, LiSSA):
        return naive_scorers.lissa(g, v, scorer.damping, scorer.depth)
    if isinstance(scorer, Exact):
        return naive_scorers.direct(g, v, scorer.damping)
    assert isinstance(scorer, HyperINF)
    wide = v.shape[1] >= v.shape[0]
    return naive_scorers.hyperinf(g, v, scorer.damping, "cols" if wide == (scorer.side == "long") else "rows")
