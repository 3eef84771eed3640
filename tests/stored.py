"""Gradient stores of random gradients, and scores from a store, in memory's form."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlmsel.gradients import Block, Factor
from vlmsel.gradients.projection import Projection
from vlmsel.gradients.store.format import StoreSettings
from vlmsel.gradients.store.reader import GradientStore
from vlmsel.gradients.store.writer import StoreWriter
from vlmsel.scorers import Scorer
from vlmsel.scoring.curvature import FitSources, Targets
from vlmsel.scoring.pool_pass import Scored, score_pool
from vlmsel.scoring.source import StoreSource

BLOCKS = (Block("layer.weight", "layer", 6, 5), Block("layer.bias", "layer", 1, 6), Block("head.weight", "head", 3, 9))
UIDS = torch.tensor([40, 3, 17, 8, 22, 31, 5])
SIZES = ([2, 2], [3])  # samples of each batch of each shard
NAMES = ("one", "two")
SAME = {"blocks": BLOCKS, "dtype": "float32", "projection": None, "about": {"model": "m", "pool": [1, 2]}}
ORIGIN = {"one": "file"}
RECORDS = {"sources": ["s"] * 41}


def random_gradients(count: int = 7, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {b.name: torch.randn(count, b.rows, b.cols, generator=generator, dtype=dtype) for b in BLOCKS}


def losses() -> Tensor:
    return torch.arange(len(UIDS)) / 4


def opened(folder: Path, **changes: Any) -> StoreWriter:
    """Begin a store, or go on with one."""
    writer = StoreWriter(folder, StoreSettings(**{**SAME, **changes}))
    writer.begin(len(UIDS), RECORDS)
    return writer


def write_some(writer: StoreWriter, given: Mapping[str, Tensor], numbers: Collection[int] = (0, 1)) -> None:
    """Write shards of these numbers, batch by batch."""
    spans = iter(torch.arange(len(UIDS)).split(sum(SIZES, [])))
    for number, sizes in enumerate(SIZES):
        rows = [next(spans) for _ in sizes]
        if number in numbers:
            factors = [{name: Factor.from_dense(g[row]) for name, g in given.items()} for row in rows]
            packed = [writer.packer.pack(UIDS[row], losses()[row], own) for row, own in zip(rows, factors, strict=True)]
            writer.write_shard(number, packed, {})


def written(
    folder: Path,
    given: Mapping[str, Tensor] | None = None,
    dtype: str = "float32",
    projection: Projection | None = None,
) -> GradientStore:
    """Write a whole store, or what of it is not there, and open it."""
    writer = opened(folder, dtype=dtype, projection=projection)
    missing = [number for number in range(len(SIZES)) if not writer.has_shard(number)]
    write_some(writer, random_gradients() if given is None else given, missing)
    writer.write_targets(NAMES, random_gradients(2, seed=1), ORIGIN)
    writer.finish(range(len(SIZES)))
    return GradientStore.open(folder)


def stored_gradients(store: GradientStore, block: str) -> Tensor:
    """A block's gradients of all samples, in the order of `store.uids`. [n, rows, cols]"""
    masks = [torch.ones(len(shard.uids), dtype=torch.bool) for shard in store.shards]
    return torch.cat([shard.factor(block, mask).dense() for shard, mask in zip(store.shards, masks, strict=True)])


def score_stored(
    store: GradientStore,
    scorers: Sequence[Scorer],
    keep: Collection[int] | None = None,
    fit: Collection[int] | None = None,
    scale: Collection[int] | None = None,
) -> Scored:
    """Score samples from a store, all when None; P is made from `fit`, else from those scored."""
    kept = set(store.uids.tolist()) if keep is None else keep
    fitted = kept if fit is None else fit
    sources = [StoreSource(store, own) for own in (kept, fitted, fitted if scale is None else scale)]
    with tempfile.TemporaryDirectory() as out:
        targets = Targets(store.targets, store.target_gradients)
        found = score_pool(sources[0], FitSources(*sources[1:]), targets, scorers, Path(out))
    assert found is not None
    return found


def bytes_of(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
