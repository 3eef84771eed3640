"""Write per-sample gradients to disk while a pool is passed once: a gradient store, shard by shard.

A shard holds one chunk of batches and appears under its name only when it is whole, so a run that was killed goes on
behind the shards that are there. Gradients are projected, formed and rounded batch by batch (`pack`), so that no more
than a batch needs to be on the device at once.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from vlmsel import runs
from vlmsel.gradients import Block, Factor
from vlmsel.gradients.projection import Projection
from vlmsel.gradients.store.format import (
    DTYPES,
    FINISHED,
    TARGETS,
    UNFINISHED,
    StoreSettings,
    check_free,
    check_layout,
    check_unique,
    open_file,
    open_shard,
    shard_path,
    store_bytes,
    target_names,
    to_header,
)
from vlmsel.gradients.store.packing import Batch, Packer, batch_size


class StoreWriter:
    """Writes a gradient store, or what of it is missing.

    Several processes may write different shards of one store; one of them opens the folder first and finishes it.
    """

    def __init__(
        self,
        folder: str | Path,
        blocks: Sequence[Block],
        dtype: str = "float32",
        projection: Projection | None = None,
        about: Mapping[str, Any] | None = None,
        samples: int | None = None,
    ) -> None:
        """Open a new folder, or one that holds a store of the same settings, finished or not.

        Args:
            folder: where the store lies.
            blocks: the blocks whose gradients are written.
            dtype: float32, bfloat16 or float16.
            projection: random projection of every block.
            about: what else tells this store from another, JSON-able, such as digests of model and pool.
            samples: how many samples will be written; if given, the disk must have room for them.

        Raises:
            ValueError: the folder holds something else, or the disk is too small.
        """
        self.folder = Path(folder)
        self.settings = StoreSettings(tuple(blocks), dtype, projection, dict(about or {}))
        self._asked: set[int] = set()
        self._packer = Packer(self.settings)
        _check_folder(self.folder, self.settings)
        if samples is not None:
            needs = store_bytes(samples, blocks, dtype, projection)
            check_free(self.folder, needs - sum(path.stat().st_size for path in self._paths()))
        (self.folder / "shards").mkdir(parents=True, exist_ok=True)
        if not any((self.folder / name).is_file() for name in (FINISHED, UNFINISHED)):
            runs.write_json(self.folder / UNFINISHED, self.settings.to_json())

    def _paths(self) -> list[Path]:
        return sorted((self.folder / "shards").glob("*.safetensors"))

    def has_shard(self, number: int) -> bool:
        """Tell whether a shard is there already.

        Raises:
            ValueError: it is damaged.
        """
        self._asked.add(number)
        path = shard_path(self.folder, number)
        return path.is_file() and bool(open_shard(path, self.settings))

    def shard_uids(self, number: int) -> Tensor:
        """Return the samples of a shard that is there. [n]"""
        return open_shard(shard_path(self.folder, number), self.settings).uids

    def pack(self, uids: Tensor, factors: Mapping[str, Factor]) -> dict[str, Tensor]:
        """Project, form and round a batch's gradients, and move them to the CPU: what `write_shard` takes as well.

        Raises:
            ValueError: other blocks or shapes than the store's, or a gradient that is not finite or leaves the dtype's
                range; names the sample.
        """
        return self._packer.pack(uids, factors)

    def write_shard(self, number: int, uids: Tensor, losses: Tensor, factors: Batch | Sequence[Batch]) -> None:
        """Write one chunk of batches; a shard that is there with these samples stays as it is.

        Args:
            number: its number, from 0 up to 8 digits; numbers need not follow each other.
            uids: the samples of all its batches. [n]
            losses: their losses. [n]
            factors: their gradients, one mapping per batch, or a single one; without the samples that are not finite.

        Raises:
            ValueError: the shard there has other samples, or what is given does not fit the store or is not finite.
        """
        uids, losses = uids.cpu().long(), losses.detach().cpu()
        if self.has_shard(number):
            if not torch.equal(self.shard_uids(number), uids):
                path = shard_path(self.folder, number)
                raise ValueError(f"{path}: holds other samples; choose another folder or delete the store")
            return
        _check_samples(uids, losses)
        packed = self._all_packed(uids, [factors] if isinstance(factors, Mapping) else factors)
        self._packer.check_rounding()
        tensors = {"uids": uids, "losses": losses.float()}
        for block in self.settings.stored:
            empty = torch.empty(0, block.rows, block.cols, dtype=DTYPES[self.settings.dtype])
            tensors[block.name] = torch.cat([empty, *(batch[block.name] for batch in packed)])
        sizes = [len(next(iter(batch.values()))) for batch in packed]
        self._save(shard_path(self.folder, number), tensors, {"batches": sizes})

    def _all_packed(self, uids: Tensor, batches: Sequence[Batch]) -> list[dict[str, Tensor]]:
        sizes = [batch_size(batch) for batch in batches]
        if sum(sizes) != len(uids):
            raise ValueError(f"{len(uids)} uids for gradients of {sum(sizes)} samples")
        spans = uids.split(sizes) if sizes else ()
        return [self._packer.as_packed(span, batch) for span, batch in zip(spans, batches, strict=True)]

    def write_targets(self, names: Sequence[str], gradients: Mapping[str, Tensor]) -> None:
        """Write the targets' mean gradients, in place of others that are there.

        Args:
            names: the targets.
            gradients: per block, in the model's sizes. [targets, rows, cols]

        Raises:
            ValueError: other blocks or shapes than the store's, a name given twice, or a gradient is not finite.
        """
        if not names or len(set(names)) < len(names):
            raise ValueError(f"targets need different names, got {list(names)}")
        stacks = self._packer.pack_targets(names, gradients)
        self._save(self.folder / TARGETS, stacks, {"targets": list(names)})

    def has_targets(self, names: Sequence[str]) -> bool:
        """Tell whether the gradients of exactly these targets are there."""
        path = self.folder / TARGETS
        return path.is_file() and target_names(open_file(path, self.settings)) == list(names)

    def _save(self, path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        with runs.atomic_path(path) as part:
            save_file(tensors, part, metadata=to_header(self.settings, about))

    def finish(self, numbers: Collection[int] | None = None) -> None:
        """Declare the store finished, when all processes have written their shards.

        Args:
            numbers: the numbers of all its shards; those that this writer was asked for when left out.

        Raises:
            ValueError: the folder has other shards than these, a sample is in two of them, or targets are missing.
        """
        expected = {shard_path(self.folder, n) for n in (self._asked if numbers is None else numbers)}
        _check_shards(self.folder, expected, set(self._paths()))
        shards = {path.stem: open_shard(path, self.settings).uids for path in self._paths()}
        check_unique(self.folder, torch.cat(list(shards.values())))
        if not (self.folder / TARGETS).is_file():
            raise ValueError(
                f"{self.folder}: the targets' gradients are missing; write them before the store is finished"
            )
        file = open_file(self.folder / TARGETS, self.settings)
        check_layout(self.folder / TARGETS, file, self.settings.target_layout(len(target_names(file))))
        counts = {name: len(uids) for name, uids in shards.items()}
        content = self.settings.to_json() | {"samples": sum(counts.values()), "shards": counts}
        runs.write_json(self.folder / FINISHED, content)
        for left in [self.folder / UNFINISHED, *self.folder.rglob("*.part")]:  # .part: of writers that were killed
            left.unlink(missing_ok=True)


def _check_samples(uids: Tensor, losses: Tensor) -> None:
    if uids.ndim != 1 or losses.shape != uids.shape:
        raise ValueError(f"uids have shape {list(uids.shape)} and losses {list(losses.shape)}; expected [n] and [n]")
    if len(uids.unique()) < len(uids):
        raise ValueError("a sample is there twice in one shard; give every sample once")
    bad = ~torch.isfinite(losses)
    if bool(bad.any()):
        raise ValueError(f"the loss of sample {int(uids[bad][0])} is not finite; leave the sample out")


def _check_shards(folder: Path, expected: set[Path], found: set[Path]) -> None:
    lacking, other = sorted(expected - found), sorted(found - expected)
    if lacking:
        raise ValueError(
            f"{folder}: {len(lacking)} of {len(expected)} shards are missing, the first: {lacking[0].name}; "
            "run the command that writes the store again"
        )
    if other:
        raise ValueError(
            f"{folder}: {len(other)} shards were written by a run with other batches, the first: {other[0].name}; "
            "delete the store and write it again"
        )
    if not expected:
        raise ValueError(f"{folder}: a store without shards cannot be finished; write at least one")


def _check_folder(folder: Path, settings: StoreSettings) -> None:
    """Refuse a folder that holds something else.

    Raises:
        ValueError: it holds no store, or one of other settings; names the first that differs.
    """
    path = folder / (FINISHED if (folder / FINISHED).is_file() else UNFINISHED)
    if path.is_file():
        was, now = _flat(StoreSettings.from_json(runs.read_json(path), path)), _flat(settings)
        differ = [name for name in {**was, **now} if was.get(name) != now.get(name)]
        if differ:
            raise ValueError(
                f"{folder}: holds a gradient store of other settings ({_change(differ[0], was, now)}); choose another "
                "folder or delete this one"
            )
    elif folder.exists() and (not folder.is_dir() or any(_contents(folder))):
        raise ValueError(f"{folder}: exists but is not a gradient store; choose another folder")


def _contents(folder: Path) -> list[Path]:
    """List files other than what a writer that was killed at once leaves behind."""
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".part"]


def _flat(settings: StoreSettings) -> dict[str, Any]:
    content = settings.to_json()
    about = content.pop("about")
    return content | {f"about {name}": value for name, value in about.items()}


def _change(name: str, was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    if name == "blocks":
        return f"{len(was[name])} blocks there, {len(now[name])} now, not the same"
    return f"{name}: {json.dumps(was.get(name))} there, {json.dumps(now.get(name))} now"
