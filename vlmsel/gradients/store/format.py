"""What a gradient store looks like on disk, and how much of the disk it takes.

    store.json                       settings and what is known of the pool's records; its shards once it is finished
    shards/<number>.safetensors      uids [n] int64, losses [n] float32, per block gradients [n, rows, cols]
    targets.safetensors              per block the targets' mean gradients [targets, rows, cols], float32

Every file of tensors has a header, which names the settings that the file belongs to by their digest: shards of two
stores cannot be mixed. A shard's header also says which batches it was written from and which of their samples it
lacks, that of the targets what these are called and were made from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vlmsel import runs
from vlmsel.checks import check_choice
from vlmsel.gradients import Block
from vlmsel.gradients.projection import Projection

FORMAT = 2
CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}  # what safetensors calls them
STORE, TARGETS = "store.json", "targets.safetensors"
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
        check_choice(tuple(CODES), dtype=self.dtype)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of the stored gradients."""
        return getattr(torch, self.dtype)

    @property
    def stored(self) -> tuple[Block, ...]:
        """The blocks in the sizes that are stored."""
        if self.projection is None:
            return self.blocks
        shapes = [self.projection.shape(block.rows, block.cols) for block in self.blocks]
        return tuple(replace(b, rows=rows, cols=cols) for b, (rows, cols) in zip(self.blocks, shapes, strict=True))

    @property
    def sample_bytes(self) -> int:
        """What a sample takes on disk; a shard's header takes a few kB more."""
        entries = sum(block.rows * block.cols for block in self.stored)
        return entries * self.torch_dtype.itemsize + 12  # 12: uid and loss

    def shard_layout(self, header: Mapping[str, Any]) -> Layout:
        """Say which tensors a shard with this header holds."""
        samples = sum(header["batches"])
        fixed: Layout = {"uids": ("I64", [samples]), "losses": ("F32", [samples])}
        return fixed | self._gradients(samples, CODES[self.dtype])

    def target_layout(self, header: Mapping[str, Any]) -> Layout:
        """Say which tensors a file of targets with this header holds."""
        return self._gradients(len(header["targets"]), "F32")

    def _gradients(self, count: int, code: str) -> Layout:
        return {block.name: (code, [count, block.rows, block.cols]) for block in self.stored}

    def to_json(self) -> dict[str, Any]:
        """Return them as they are read back."""
        return json.loads(json.dumps({"format": FORMAT, **asdict(self)}))

    @classmethod
    def from_json(cls, content: Any, path: Path) -> StoreSettings:
        """Read them back.

        Raises:
            ValueError: `path`, where they were found, holds something else or another format.
        """
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(
                f"{path}: not a gradient store of format {FORMAT}; write the store again with this version"
            )
        try:
            blocks = tuple(Block(**block) for block in content["blocks"])
            projection = Projection(**content["projection"]) if content["projection"] else None
            return cls(blocks, content["dtype"], projection, content["about"])
        except (KeyError, TypeError, ValueError) as problem:
            raise ValueError(f"{path}: damaged ({problem!r}); write the store again") from None

    def digest(self) -> str:
        """Return the SHA-256 that names these settings in every file of the store."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()


def shard_path(folder: Path, number: int) -> Path:
    """Return where a shard lies."""
    return folder / "shards" / f"{number:08d}.safetensors"


def save_tensors(
    path: Path, settings: StoreSettings, tensors: dict[str, Shaped[Tensor, ...]], header: Mapping[str, Any]
) -> None:
    """Write a file of tensors with its header, atomically."""
    # one entry, since safetensors writes several in an order that changes
    metadata = {"vlmsel": json.dumps({"store": settings.digest(), **header})}
    with runs.atomic_path(path) as part:
        save_file(tensors, part, metadata=metadata)


def open_tensors(
    path: Path, settings: StoreSettings, layout: Callable[[Mapping[str, Any]], Layout], device: str = "cpu"
) -> tuple[Any, dict[str, Any]]:
    """Map a file of tensors into memory and check all but the numbers, which are read when they are asked for.

    Args:
        path: the file.
        settings: those of the store.
        layout: says, for the file's header, which tensors it must hold.
        device: where tensors are read to.

    Returns:
        The mapped file and its header.

    Raises:
        ValueError: the file is damaged or belongs to a store of other settings.
    """
    try:
        file = safe_open(path, framework="pt", device=device)
        header = json.loads(file.metadata()["vlmsel"])
        found = {name: (s.get_dtype(), s.get_shape()) for name in file.keys() for s in [file.get_slice(name)]}  # noqa: SIM118
        own = header["store"] == settings.digest()
        wrong = _difference(found, layout(header)) if own else None
    except (SafetensorError, OSError, LookupError, TypeError, ValueError) as problem:
        raise ValueError(f"{path}: damaged ({problem!r}); {AGAIN}") from None
    if not own:
        raise ValueError(f"{path}: belongs to a gradient store of other settings; {AGAIN}")
    if wrong:
        raise ValueError(f"{path}: damaged ({wrong}); {AGAIN}")
    return file, header


def _difference(found: Layout, expected: Layout) -> str | None:
    """Say what is wrong with the first tensor that differs."""
    for name in [*expected, *found]:
        if found.get(name) != expected.get(name):
            return f"{name} is {found.get(name, 'nothing')}, expected {expected.get(name, 'nothing')}"
    return None
