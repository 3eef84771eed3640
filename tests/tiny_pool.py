"""Pools of random items for a tiny vision-language model, and the plain twin of scoring them in two passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from naive_gradients import loop_gradients
from tiny_models import random_ids, row_samples, sample_losses
from torch import Tensor
from torch.utils.data import Dataset

from vlmsel.data.batches import Collator, Item, length_batches
from vlmsel.gradients import Block, Factor
from vlmsel.models.vlm import VLM
from vlmsel.scorers import Scorer
from vlmsel.scoring.batches import BatchPlan
from vlmsel.scoring.curvature import Pass, Streams
from vlmsel.scoring.halving import Budget
from vlmsel.scoring.score_pass import Bad, Objective

OBJECTIVE = Objective(sample_losses, row_samples)
COLLATE = Collator(258)
POOL = (1, 0, 2, 1, 0, 3, 1, 2)  # images per sample


class Items(Dataset):
    """A list as a data set."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, position: int) -> Item:
        return self.items[position]


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


def tiny_plan(items: Sequence[Item], batch_size: int = 3, positions: Sequence[int] | None = None) -> BatchPlan:
    """Batches of like lengths, as the score command makes them."""
    positions = range(len(items)) if positions is None else positions
    groups = length_batches([len(items[i].input_ids) for i in positions], batch_size)
    return BatchPlan(Items(items), COLLATE, [[positions[i] for i in group] for group in groups])


def tiny_streams(
    items: Sequence[Item],
    targets: Mapping[str, Sequence[Item]],
    batch_size: int = 3,
    fit: Sequence[int] | None = None,
) -> Streams:
    """Everything that the passes before the score pass read; damping is measured on all fit samples."""
    fit = range(len(items)) if fit is None else fit
    plan = tiny_plan(items, batch_size, fit)
    return Streams(plan, plan, {name: tiny_plan(some, batch_size) for name, some in targets.items()})


def job(model: VLM, blocks: Sequence[Block], objective: Objective = OBJECTIVE) -> Pass:
    """What every pass needs."""
    return Pass(model, objective, blocks, Bad(), Budget())


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


def exploding(uid: int) -> Objective:
    """An objective whose gradient is infinite at one sample."""

    def losses(model, batch):
        return _Overflow.apply(OBJECTIVE.losses(model, batch), batch.uids == uid)

    return OBJECTIVE._replace(losses=losses)


def loop(model: VLM, items: Sequence[Item], blocks: Sequence[Block]) -> dict[str, Tensor]:
    """Each item's gradients, from batches of one."""
    return loop_gradients(model, [COLLATE([item]) for item in items], sample_losses, blocks)


def loop_means(model: VLM, targets: Mapping[str, Sequence[Item]], blocks: Sequence[Block]) -> dict[str, Tensor]:
    """Each target's mean gradient. [targets, rows, cols] per block"""
    found = [loop(model, items, blocks) for items in targets.values()]
    return {block.name: torch.stack([one[block.name].mean(0) for one in found]) for block in blocks}


def scores_by_hand(
    gradients: Mapping[str, Tensor], targets: Mapping[str, Tensor], scorer: Scorer, fit: Sequence[int]
) -> Tensor:
    """Scores of all samples with curvature fitted on some of them, from dense gradients. [targets, n]"""
    total = torch.zeros(())
    for name, dense in gradients.items():
        part = Factor.from_dense(dense[list(fit)])
        accumulator = scorer.accumulator(targets[name], float(dense[list(fit)].square().mean()))
        accumulator.update(part)
        total = total - torch.einsum("krc,nrc->kn", accumulator.solve(), dense)
    return total
