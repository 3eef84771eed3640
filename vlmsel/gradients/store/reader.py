"""Read the per-sample gradients that one pass over a pool wrote (`store_writer.py`).

Shards are mapped into memory; a tensor is read when it is used. Gradients come back in float32, whatever the store's
dtype.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlmsel import runs
from vlmsel.gradients import Block
from vlmsel.gradients.store.format import (
    FINISHED,
    TARGETS,
    UNFINISHED,
    Shard,
    StoreSettings,
    check_layout,
    check_unique,
    open_file,
    open_shard,
    target_names,
)

Masks = Sequence[Tensor]  # of each shard, which samples are meant: [n] bool


@dataclass(frozen=True, eq=False)
class GradientStore:
    """A finished store.

    Attributes:
        folder: where it lies.
        settings: what was stored.
        shards: the mapped shards, in the order of their numbers.
        device: where tensors are read to.
    """

    folder: Path
    settings: StoreSettings
    shards: tuple[Shard, ...]
    device: str = "cpu"

    @classmethod
    def open(cls, folder: str | Path, device: str = "cpu") -> GradientStore:
        """Open a store and check the header of every file.

        Raises:
            FileNotFoundError: there is no store, it is unfinished, or files are missing.
            ValueError: a file is damaged or belongs to another store.
        """
        folder = Path(folder)
        path = folder / FINISHED
        if not path.is_file():
            what = "unfinished" if (folder / UNFINISHED).is_file() else "no"
            raise FileNotFoundError(
                f"{folder}: {what} gradient store ({FINISHED} is missing); run the command that writes it to its end"
            )
        content = runs.read_json(path)
        settings = StoreSettings.from_json(content, path)
        shards = _open_shards(folder, settings, content.get("shards", {}), device)
        check_unique(folder, torch.cat([shard.uids for shard in shards] or [torch.zeros(0, dtype=torch.int64)]))
        store = cls(folder, settings, shards, device)
        check_layout(folder / TARGETS, store._targets, settings.target_layout(len(store.targets)))
        return store

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks, in the sizes that are stored."""
        return self.settings.stored

    @property
    def about(self) -> Mapping[str, Any]:
        """Where the gradients come from, as the writer was told."""
        return self.settings.about

    @property
    def uids(self) -> Tensor:
        """All samples, in the order in which they were written. [n]"""
        return torch.cat([shard.uids for shard in self.shards])

    @property
    def losses(self) -> Tensor:
        """Their losses. [n] float32"""
        return torch.cat([shard.losses() for shard in self.shards])

    @cached_property
    def _targets(self) -> Any:
        return open_file(self.folder / TARGETS, self.settings, self.device)

    @property
    def targets(self) -> tuple[str, ...]:
        """The targets' names."""
        return tuple(target_names(self._targets))

    def target_gradients(self, blocks: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Return the targets' gradients on these blocks, or on all. [targets, rows, cols] float32"""
        names = [block.name for block in self.blocks] if blocks is None else blocks
        return {name: self._targets.get_tensor(name) for name in names}

    def masks(self, keep: Collection[int] | None = None, what: str = "keep") -> list[Tensor]:
        """Mark, shard by shard, the samples whose uids are given; all when None.

        Raises:
            ValueError: some of them are not in the store.
        """
        if keep is None:
            return [torch.ones(len(shard.uids), dtype=torch.bool) for shard in self.shards]
        wanted = torch.tensor(sorted({int(uid) for uid in keep}), dtype=torch.int64)
        unknown = wanted[~torch.isin(wanted, self.uids)]
        if len(unknown):
            raise ValueError(
                f"{self.folder}: {len(unknown)} of {len(wanted)} samples of {what} are not in the gradient store, the "
                f"first: {int(unknown[0])}"
            )
        return [torch.isin(shard.uids, wanted) for shard in self.shards]

    def gradients(self, block: str, keep: Collection[int] | None = None) -> Tensor:
        """Return a block's gradients of all samples, or of some, in the order of `uids`. [n, rows, cols]

        Raises:
            ValueError: the store has no such block or lacks a sample.
        """
        shapes = {each.name: (each.rows, each.cols) for each in self.blocks}
        if block not in shapes:
            raise ValueError(f"{self.folder}: no block {block!r} in the gradient store; it has {', '.join(shapes)}")
        empty = torch.zeros(0, *shapes[block], device=self.device)
        pairs = zip(self.shards, self.masks(keep), strict=True)
        return torch.cat([empty, *(shard.factor(block, mask).dense() for shard, mask in pairs)])


def _open_shards(folder: Path, settings: StoreSettings, counts: Mapping[str, int], device: str) -> tuple[Shard, ...]:
    paths = {folder / "shards" / f"{name}.safetensors": count for name, count in sorted(counts.items())}
    lacking = [path for path in [*paths, folder / TARGETS] if not path.is_file()]
    if lacking:
        raise FileNotFoundError(
            f"{lacking[0]}: no such file ({len(lacking)} of the gradient store's {len(paths) + 1} files are missing); "
            "run the command that writes the store again"
        )
    shards = {path: open_shard(path, settings, device) for path in paths}
    for path, shard in shards.items():
        if len(shard.uids) != paths[path]:
            raise ValueError(
                f"{path}: has {len(shard.uids)} samples, {FINISHED} says {paths[path]}; write the store again"
            )
    return tuple(shards.values())
