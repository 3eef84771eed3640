"""Warm-up: the part of a pool that a model learns the form of an answer from before its gradients are asked.

The gradients of an untuned model all teach the form of an answer, right or wrong ones alike; after a short training on
a random part, drawn in equal proportion from every source, they tell samples apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from vlmsel import runs
from vlmsel.data.batches import length_batches
from vlmsel.data.dataset import SampleDataset, shown
from vlmsel.models.subject import Subject

LEAST = 200  # samples of a warm-up, however small its share of the pool
RECORD = "warmup.json"  # in the run folder of `vlmsel warmup`


def part_size(total: int, fraction: float, least: int) -> int:
    """Return how many samples are drawn: a fraction, at least so many, at most all.

    >>> part_size(10_000, 0.05, 200), part_size(1_000, 0.05, 200), part_size(50, 0.05, 200)
    (500, 200, 50)
    """
    return min(total, max(least, round(fraction * total)))


def draw_part(sources: Sequence[str], count: int, seed: int) -> list[int]:
    """Draw `count` positions, of every source in proportion (largest remainders), in rising order.

    >>> [position < 6 for position in draw_part(["a"] * 6 + ["b"] * 3, 3, seed=0)]
    [True, True, False]
    """
    _, rows = np.unique(np.asarray(sources), return_inverse=True)
    exact = np.bincount(rows) * (count / len(rows))
    places = np.floor(exact).astype(int)
    places[np.argsort(places - exact, kind="stable")[: count - int(places.sum())]] += 1
    order = np.random.default_rng(seed).permutation(len(rows))
    drawn = [order[rows[order] == source][:size] for source, size in enumerate(places)]
    return [int(position) for position in np.sort(np.concatenate(drawn))]


def warmed_up(model: str | Path, pool_sha256: str) -> list[int]:
    """Return the uids of the pool's samples that a model was warmed up on, by the record in its run folder."""
    for folder in (Path(model), Path(model).parent):
        if (folder / RECORD).is_file():
            record = runs.read_json(folder / RECORD)
            return record["uids"] if record["pool_sha256"] == pool_sha256 else []
    return []


def mean_loss(subject: Subject, data: SampleDataset, tokens: int = 8192) -> float:
    """Return the mean of the usable samples' losses, in batches of at most so many tokens."""
    losses = sample_losses(subject, data, tokens).values()
    return sum(losses) / len(losses)


@torch.no_grad()
def sample_losses(subject: Subject, data: SampleDataset, tokens: int = 8192) -> dict[int, float]:
    """Return the loss of every usable sample by its uid, in batches of at most so many tokens."""
    subject.module.eval()
    usable, lengths, known = data.usable(), data.lengths(), data.uids
    found: dict[int, float] = {}
    for group in shown(length_batches([lengths[i] for i in usable], None, tokens), "target losses", "batch"):
        batch = subject.collate([data[usable[i]] for i in group]).to(subject.device)
        losses = subject.losses(batch).double().tolist()
        found |= dict(zip((known[usable[i]] for i in group), losses, strict=True))
    return found
