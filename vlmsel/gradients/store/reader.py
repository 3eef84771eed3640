"""Read the per-sample gradients that one pass over a pool wrote (`writer.py`).

Shards are mapped into memory; a tensor is read when it is used. Gradients come back in float32, whatever the store's
dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vlmsel import runs
from vlmsel.gradients import Block, Factor
from vlmsel.gradients.store.format import STORE, TARGETS, StoreSettings, open_tensors, shard_path

LeftOut = Mapping[int, tuple[str, float]]  # uid -> why, and its loss
END = "run the command that writes it to its end"


@dataclass(frozen=True, eq=False)
class Shard:
    """One file of samples.

    Attributes:
        file: the mapped file.
        uids: its samples. [n]
        sizes: samples of each batch that it was written from.
        left_out: samples of these batches that it lacks.
    """

    file: Any
    uids: Int[Tensor, " n"]
    sizes: list[int]
    left_out: LeftOut

    @classmethod
    def open(cls, path: Path, settings: StoreSettings, device: str = "cpu") -> Shard:
        """Map a shard and check its header.

        Raises:
            ValueError: it is damaged or belongs to a store of other settings.
        """
        file, header = open_tensors(path, settings, settings.shard_layout, device)
        left_out = {uid: (why, loss) for uid, why, loss in header["left_out"]}
        return cls(file, file.get_tensor("uids").cpu(), header["batches"], left_out)

    def losses(self) -> Float[Tensor, " n"]:
        """Return the samples' losses. [n] float32"""
        return self.file.get_tensor("losses").cpu()

    def factor(self, block: str, mask: Bool[Tensor, " n"]) -> Factor:
        """Return a block's gradients of the samples that `mask` marks, in float32."""
        grads = self.file.get_tensor(block)
        return Factor.from_dense(grads if bool(mask.all()) else grads[mask.to(grads.device)])


@dataclass(frozen=True, eq=False)
class GradientStore:
    """A store with all its files.

    Attributes:
        folder: where it lies.
        settings: what was stored.
        records: what is known of the pool's records, as the writer was told.
        shards: the mapped shards, in the order of their numbers.
        targets: the targets' names.
        goals: the mapped file of their gradients.
        device: where tensors are read to.
    """

    folder: Path
    settings: StoreSettings
    records: Mapping[str, Any]
    shards: tuple[Shard, ...]
    targets: tuple[str, ...]
    goals: Any
    device: str

    @classmethod
    def open(cls, folder: str | Path, device: str = "cpu") -> GradientStore:
        """Open a finished store and check the header of every file.

        Raises:
            FileNotFoundError: there is no store, it is unfinished, or files are missing.
            ValueError: a file is damaged or belongs to another store.
        """
        folder = Path(folder)
        path = folder / STORE
        if not path.is_file():
            raise FileNotFoundError(f"{folder}: no gradient store ({STORE} is missing); {END}")
        content = runs.read_json(path)
        settings = StoreSettings.from_json(content, path)
        if "shards" not in content:
            raise FileNotFoundError(f"{folder}: unfinished gradient store; {END}")
        return cls.of(folder, settings, content, device)

    @classmethod
    def of(
        cls, folder: Path, settings: StoreSettings, content: Mapping[str, Any], device: str = "cpu"
    ) -> GradientStore:
        """Open the files that `content`, that of a finished `store.json`, names.

        Raises:
            FileNotFoundError: files are missing.
            ValueError: a file is damaged or belongs to another store, or a sample is there twice.
        """
        paths = [shard_path(folder, number) for number in content["shards"]]
        lacking = [path for path in [*paths, folder / TARGETS] if not path.is_file()]
        if lacking:
            raise FileNotFoundError(
                f"{lacking[0]}: no such file ({len(lacking)} of the gradient store's {len(paths) + 1} files are "
                "missing); run the command that writes the store again"
            )
        shards = tuple(Shard.open(path, settings, device) for path in paths)
        goals, header = open_tensors(folder / TARGETS, settings, settings.target_layout, device)
        store = cls(folder, settings, content["records"], shards, tuple(header["targets"]), goals, device)
        found, counts = store.uids.unique(return_counts=True)
        if len(found) < max(1, len(store.uids)):
            first = f"sample {int(found[counts > 1][0])} is there twice" if len(found) else "no sample is there"
            raise ValueError(f"{folder}: {first}; delete the store and write it again")
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
    def uids(self) -> Int[Tensor, " n"]:
        """All samples, in the order in which they were written. [n]"""
        return torch.cat([torch.zeros(0, dtype=torch.int64), *(shard.uids for shard in self.shards)])

    @property
    def losses(self) -> Float[Tensor, " n"]:
        """Their losses. [n] float32"""
        return torch.cat([shard.losses() for shard in self.shards])

    @property
    def left_out(self) -> LeftOut:
        """The samples that it lacks, as they are not finite: why, and the loss of each."""
        return {uid: lost for shard in self.shards for uid, lost in shard.left_out.items()}

    def target_gradients(self) -> dict[str, Float[Tensor, "targets _ _"]]:
        """Return the targets' gradients, [targets, rows, cols] float32 per block."""
        return {block.name: self.goals.get_tensor(block.name) for block in self.blocks}
