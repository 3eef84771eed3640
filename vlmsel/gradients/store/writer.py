"""Write per-sample gradients to disk while a pool is passed once: a gradient store, shard by shard.

A shard holds one chunk of batches and appears under its name only when it is whole, so a run that was killed goes on
behind the shards that are there. Gradients are packed batch by batch (`packer`), so that no more than a batch needs to
be on the device at once.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from vlmsel import runs
from vlmsel.gradients.store.format import (
    STORE,
    TARGETS,
    StoreSettings,
    open_tensors,
    save_tensors,
    shard_path,
)
from vlmsel.gradients.store.packing import Packer
from vlmsel.gradients.store.reader import GradientStore, LeftOut, Shard


class StoreWriter:
    """Writes a gradient store, or what of it is missing.

    Several processes may write different shards of one store; one of them begins and finishes it.
    """

    def __init__(self, folder: Path, settings: StoreSettings) -> None:
        """Take a new folder, or one that holds a store of the same settings, finished or not.

        Raises:
            ValueError: the folder holds something else.
        """
        _check_folder(folder, settings)
        self.folder, self.settings, self.packer = folder, settings, Packer(settings)

    def begin(self, samples: int, records: Mapping[str, Any]) -> None:
        """Make the folder, before anything else is written to it.

        Args:
            samples: how many will be written in all.
            records: what is known of the pool's records, JSON-able.

        Raises:
            ValueError: the disk has no room for them.
        """
        there = sum(path.stat().st_size for path in self._shards())
        mend = "use a projection, dtype bfloat16, fewer blocks or samples"
        runs.require_room(self.folder, samples * self.settings.sample_bytes - there, "the gradient store", mend)
        if not (self.folder / STORE).is_file():
            runs.write_json(self.folder / STORE, {**self.settings.to_json(), "records": records})

    def _shards(self) -> list[Path]:
        return sorted((self.folder / "shards").glob("*.safetensors"))

    def has_shard(self, number: int) -> bool:
        """Tell whether a shard is there already.

        Raises:
            ValueError: it is damaged.
        """
        path = shard_path(self.folder, number)
        return path.is_file() and bool(Shard.open(path, self.settings))

    def write_shard(
        self, number: int, packed: Sequence[Mapping[str, Shaped[Tensor, "_ ..."]]], left_out: LeftOut
    ) -> None:
        """Write one chunk of batches.

        Args:
            number: its number, from 0 up to 8 digits; numbers need not follow each other.
            packed: its batches, from `packer`.
            left_out: their samples that were not packed, as they are not finite.

        Raises:
            ValueError: the dtype has lost too much of a block's gradients.
        """
        self.packer.check_rounding()
        tensors = {"uids": torch.zeros(0, dtype=torch.int64), "losses": torch.zeros(0)}
        for block in self.settings.stored:
            tensors[block.name] = torch.zeros(0, block.rows, block.cols, dtype=self.settings.torch_dtype)
        tensors = {name: torch.cat([none, *(batch[name] for batch in packed)]) for name, none in tensors.items()}
        lacking = [(uid, why, loss) for uid, (why, loss) in left_out.items()]
        header = {"batches": [len(batch["uids"]) for batch in packed], "left_out": lacking}
        save_tensors(shard_path(self.folder, number), self.settings, tensors, header)

    def write_targets(
        self, names: Sequence[str], gradients: Mapping[str, Float[Tensor, "targets _ _"]], origin: Any
    ) -> None:
        """Write the targets' mean gradients, in place of others that are there.

        Args:
            names: the targets.
            gradients: per block, in the model's sizes. [targets, rows, cols]
            origin: what they were made from, JSON-able.

        Raises:
            ValueError: a gradient is not finite.
        """
        stacks = self.packer.pack_targets(names, gradients)
        save_tensors(self.folder / TARGETS, self.settings, stacks, {"targets": list(names), "origin": origin})

    def has_targets(self, names: Sequence[str], origin: Any) -> bool:
        """Tell whether the gradients of exactly these targets, made from this, are there."""
        path = self.folder / TARGETS
        if not path.is_file():
            return False
        _, header = open_tensors(path, self.settings, self.settings.target_layout)
        return (header["targets"], header["origin"]) == (list(names), origin)

    def finish(self, numbers: Collection[int]) -> None:
        """Declare the store finished, when all processes have written their shards.

        Args:
            numbers: the numbers of all its shards.

        Raises:
            FileNotFoundError, ValueError: files are missing or damaged, the folder has shards other than these, or a
                sample is in two of them.
        """
        other = sorted(set(self._shards()) - {shard_path(self.folder, number) for number in numbers})
        if other:
            raise ValueError(
                f"{self.folder}: {len(other)} shards were written by a run with other batches, the first: "
                f"{other[0].name}; delete the store and write it again"
            )
        content = runs.read_json(self.folder / STORE) | {"shards": sorted(numbers)}
        GradientStore.of(self.folder, self.settings, content)
        runs.write_json(self.folder / STORE, content)
        runs.tidy(self.folder)


def _check_folder(folder: Path, settings: StoreSettings) -> None:
    """Refuse a folder that holds no store, or one of other settings; name the first that differs."""
    # listed first, for another job may begin the store meanwhile
    files = [path for path in folder.rglob("*") if path.is_file() and not runs.half_written(path)]
    path = folder / STORE
    if path.is_file():
        was, now = (_flat(one) for one in (StoreSettings.from_json(runs.read_json(path), path), settings))
        differ = next((name for name in {**was, **now} if was.get(name) != now.get(name)), None)
        if differ:
            raise ValueError(
                f"{folder}: holds a gradient store of other settings ({_change(differ, was, now)}); choose another "
                "folder or delete this one"
            )
    elif files or folder.is_file():
        raise ValueError(f"{folder}: exists but is not a gradient store; choose another folder")


def _flat(settings: StoreSettings) -> dict[str, Any]:
    content = settings.to_json()
    about = content.pop("about")
    return content | {f"about {name}": value for name, value in about.items()}


def _change(name: str, was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    if name == "blocks":
        return f"{len(was[name])} blocks there, {len(now[name])} now, not the same"
    return f"{name}: {json.dumps(was.get(name))} there, {json.dumps(now.get(name))} now"
