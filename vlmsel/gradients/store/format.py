"""What a gradient store looks like on disk, and how much of the disk it takes.

    store.json                       settings, samples per shard; written last: a store without it is unfinished
    unfinished.json                  the settings while the store is being written
    shards/<number>.safetensors      uids [n] int64, losses [n] float32, per block gradients [n, rows, cols]
    targets.safetensors              per block the targets' mean gradients [targets, rows, cols], float32

Every file of tensors names the settings it belongs to by their digest, so that shards of two stores cannot be mixed.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vlmsel.checks import check_choice
from vlmsel.gradients import Block, Factor
from vlmsel.gradients.projection import Projection

FORMAT = 1
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}  # what safetensors calls them
FINISHED, UNFINISHED, TARGETS = "store.json", "unfinished.json", "targets.safetensors"
AGAIN = "delete it and run the command that writes the store again, which makes only what is missing"
Layout = dict[str, tuple[str, list[int]]]  # tensor -> safetensors' dtype and shape


@dataclass(frozen=True)
class StoreSettings:
    """What all shards of a store have in common.

    Attributes:
        blocks: the model's blocks, in the model's sizes.
        dtype: of the stored gradients: float32, bfloat16 or float16.
        projection: what blocks are projected to, or None.
        about: where the gradients come from, JSON-able, such as digests of model and pool.
    """

    blocks: tuple[Block, ...]
    dtype: str
    projection: Projection | None
    about: Mapping[str, Any]

    def __post_init__(self) -> None:
        check_choice(tuple(DTYPES), dtype=self.dtype)
        names = [block.name for block in self.blocks]
        if not names or len(set(names)) < len(names) or {"uids", "losses"} & set(names):
            raise ValueError(
                f"a gradient store needs blocks of different names other than uids and losses, got {names}"
            )

    @property
    def stored(self) -> tuple[Block, ...]:
        """The blocks in the sizes that are stored."""
        return tuple(Block(block.name, block.module, *stored_shape(block, self.projection)) for block in self.blocks)

    def shard_layout(self, samples: int) -> Layout:
        """Say which tensors a shard of so many samples holds."""
        fixed: Layout = {"uids": ("I64", [samples]), "losses": ("F32", [samples])}
        return fixed | self._gradients(samples, CODES[self.dtype])

    def target_layout(self, targets: int) -> Layout:
        """Say which tensors the gradients of so many targets are."""
        return self._gradients(targets, "F32")

    def _gradients(self, count: int, code: str) -> Layout:
        return {block.name: (code, [count, block.rows, block.cols]) for block in self.stored}

    def to_json(self) -> dict[str, Any]:
        blocks = [{"name": block.name, "rows": block.rows, "cols": block.cols} for block in self.blocks]
        projection = asdict(self.projection) if self.projection else None
        content = {"format": FORMAT, "blocks": blocks, "dtype": self.dtype, "projection": projection}
        return json.loads(json.dumps(content | {"about": dict(self.about)}))

    @classmethod
    def from_json(cls, content: Mapping[str, Any], path: Path) -> StoreSettings:
        """Read them back.

        Raises:
            ValueError: `path`, where they were found, holds something else or another format.
        """
        if not isinstance(content, Mapping) or content.get("format") != FORMAT:
            raise ValueError(
                f"{path}: not a gradient store of format {FORMAT}; write the store again with this version"
            )
        try:
            blocks = tuple(_block(**block) for block in content["blocks"])
            projection = Projection(**content["projection"]) if content["projection"] else None
            return cls(blocks, content["dtype"], projection, content["about"])
        except (KeyError, TypeError, ValueError) as problem:
            raise ValueError(f"{path}: damaged ({problem!r}); write the store again") from None

    def digest(self) -> str:
        """Return the SHA-256 that names these settings in every file of the store."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()


def _block(name: str, rows: int, cols: int) -> Block:
    return Block(name, name.rpartition(".")[0], rows, cols)


def stored_shape(block: Block, projection: Projection | None) -> tuple[int, int]:
    """Return the shape in which a block's gradients are stored."""
    return projection.shape(block.rows, block.cols) if projection else (block.rows, block.cols)


def shard_path(folder: Path, number: int) -> Path:
    return folder / "shards" / f"{number:08d}.safetensors"


def to_header(settings: StoreSettings, about: Mapping[str, Any]) -> dict[str, str]:
    """Return a file's metadata, one entry, since safetensors writes several in an order that changes."""
    return {"vlmsel": json.dumps({"store": settings.digest(), **about})}


def header(file: Any) -> dict[str, Any]:
    """Return what `to_header` was told; nothing for a file that has other metadata."""
    return json.loads((file.metadata() or {}).get("vlmsel", "{}"))


def open_file(path: Path, settings: StoreSettings, device: str = "cpu") -> Any:
    """Map a file of tensors into memory; what it holds is read when it is asked for.

    Raises:
        ValueError: the file is damaged or belongs to a store of other settings.
    """
    try:
        file = safe_open(path, framework="pt", device=device)
    except (SafetensorError, OSError) as problem:
        raise ValueError(f"{path}: damaged ({problem}); {AGAIN}") from None
    if header(file).get("store") != settings.digest():
        raise ValueError(f"{path}: belongs to a gradient store of other settings; {AGAIN}")
    return file


def check_layout(path: Path, file: Any, expected: Layout) -> None:
    """Refuse a file whose header names other tensors.

    Raises:
        ValueError: names the first tensor that differs.
    """
    found = {name: (s.get_dtype(), s.get_shape()) for name in file.keys() for s in [file.get_slice(name)]}  # noqa: SIM118
    for name in [*expected, *found]:
        if found.get(name) != expected.get(name):
            was, wanted = found.get(name, "nothing"), expected.get(name, "nothing")
            raise ValueError(f"{path}: damaged ({name} is {was}, expected {wanted}); {AGAIN}")


@dataclass(frozen=True, eq=False)
class Shard:
    """One file of samples.

    Attributes:
        file: the mapped file.
        uids: its samples. [n]
        sizes: samples of each batch that it was written from.
    """

    file: Any
    uids: Tensor
    sizes: list[int]

    def losses(self) -> Tensor:
        """Return the samples' losses. [n] float32"""
        return self.file.get_tensor("losses").cpu()

    def factor(self, block: str, mask: Tensor) -> Factor:
        """Return a block's gradients of the samples that `mask` [n] marks, in float32."""
        grads = self.file.get_tensor(block)
        return Factor.from_dense(grads if bool(mask.all()) else grads[mask.to(grads.device)])


def open_shard(path: Path, settings: StoreSettings, device: str = "cpu") -> Shard:
    """Map a shard and check its header.

    Raises:
        ValueError: it is damaged or belongs to a store of other settings.
    """
    file = open_file(path, settings, device)
    try:
        samples = file.get_slice("uids").get_shape()[0]
        sizes = [int(size) for size in header(file)["batches"]]
    except (SafetensorError, KeyError, IndexError, TypeError, ValueError) as problem:
        raise ValueError(f"{path}: damaged ({problem!r}); {AGAIN}") from None
    check_layout(path, file, settings.shard_layout(samples))
    if sum(sizes) != samples:
        raise ValueError(f"{path}: damaged (batches of {sum(sizes)} samples, {samples} uids); {AGAIN}")
    return Shard(file, file.get_tensor("uids").cpu(), sizes)


def target_names(file: Any) -> list[str]:
    """Return the targets whose gradients a mapped file holds."""
    return list(header(file).get("targets", []))


def check_unique(folder: Path, uids: Tensor) -> None:
    """Refuse a store without samples or with a sample that is there twice."""
    found, counts = uids.unique(return_counts=True)
    if not len(uids) or len(found) < len(uids):
        first = f"sample {int(found[counts > 1][0])} is there twice" if len(uids) else "no sample is there"
        raise ValueError(f"{folder}: {first}; delete the store and write it again")


def store_bytes(
    samples: int, blocks: Sequence[Block], dtype: str = "float32", projection: Projection | None = None
) -> int:
    """Return the bytes that the gradients of so many samples take on disk, but for a few kB of header per shard.

    >>> store_bytes(1000, [Block("w", "", 64, 4096)], "bfloat16"), store_bytes(1000, [], "float32")
    (524300000, 12000)
    """
    check_choice(tuple(DTYPES), dtype=dtype)
    entries = sum(math.prod(stored_shape(block, projection)) for block in blocks)
    return samples * (entries * DTYPES[dtype].itemsize + 12)  # 12: uid and loss


def check_free(folder: Path, needs: int) -> None:
    """Refuse to write more bytes than the folder's disk has room for.

    Raises:
        ValueError: with both numbers.
    """
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if needs > free:
        raise ValueError(
            f"{folder}: the gradient store takes {needs / 1e9:.3g} GB more and the disk has {free / 1e9:.3g} GB free; "
            "use a projection, dtype bfloat16, fewer blocks or samples, or a folder on another disk"
        )
