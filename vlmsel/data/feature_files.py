"""The files of a folder of features: what they depend on, shards that name their pictures, and later stamps.

    features.json                what the features depend on: tower, layer, image mode, size, dtypes, normalisation
    shards/<number>.safetensors  `features` [k, patches, width]; its metadata name the k pictures
    stamps.json                  pictures whose features stand in a shard under another path or an earlier stamp

A shard has its name only when it is complete, and names its pictures itself, so that no index can contradict it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from vlmsel import runs

DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}
SPEC, STAMPS, SHARDS = "features.json", "stamps.json", "shards"
Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class FeatureSpec:
    """All that the features of a picture depend on, and how they are stored.

    Attributes:
        tower: fingerprint of the vision tower.
        layer: the block whose output they are, counted from the end.
        size: side of the square that pictures are brought to, in pixels.
        mode: how they get there, one of `images.MODES`.
        mean: the tower's channel means; they fill padding, too.
        std: the tower's channel standard deviations.
        patches: patches of a picture.
        width: numbers per patch.
        computed: dtype that the tower computes in.
        dtype: dtype of the stored numbers.
    """

    tower: str
    layer: int
    size: int
    mode: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    patches: int
    width: int
    computed: str
    dtype: str

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"the dtype of features must be one of {', '.join(DTYPES)}; got {self.dtype!r}")

    @property
    def row_bytes(self) -> int:
        """Bytes of one picture's features.

        >>> FeatureSpec("", -2, 336, "pad", (), (), 576, 1024, "bfloat16", "bfloat16").row_bytes
        1179648
        """
        return self.patches * self.width * DTYPES[self.dtype].itemsize

    def as_json(self) -> dict[str, Any]:
        """Return plain types, as JSON gives them back."""
        return json.loads(json.dumps(asdict(self)))


@dataclass(frozen=True)
class Picture:
    """A picture file as it was read: where, its stamp (bytes, two times in ns) and the hash of its bytes."""

    path: str
    stamp: Stamp
    digest: str


def stamp(path: str | Path) -> Stamp:
    """Return a file's length and the times when its content and its entry last changed, in ns.

    Raises:
        OSError: it is gone.
    """
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def shard_path(folder: Path, number: int) -> Path:
    """Return the path of a shard."""
    return folder / SHARDS / f"{number:06d}.safetensors"


def read_shard(path: Path, spec: FeatureSpec) -> tuple[int, list[Picture]]:
    """Return the byte where a shard's features begin, and its pictures in their order; only the header is read.

    Raises:
        ValueError: it is no such shard, or has another length than its header says.
    """
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > (total := os.fstat(file.fileno()).st_size):
                raise ValueError("header")
            header = json.loads(file.read(length))
        pictures = _pictures(json.loads(header["__metadata__"]["pictures"]))
        fits = header["features"]["shape"] == [len(pictures), spec.patches, spec.width] and path.stem.isdigit()
    except (ValueError, KeyError, TypeError):
        raise ValueError(damaged(path)) from None
    if not fits or total != 8 + length + len(pictures) * spec.row_bytes:
        raise ValueError(damaged(path))
    return 8 + length, pictures


def write_shard(path: Path, pictures: Sequence[Picture], features: Tensor) -> None:
    """Write the features [k, patches, width] of k pictures, atomically.

    Raises:
        OSError: the disk is full, or the like.
    """
    try:
        with runs.atomic_path(path) as part:
            save_file({"features": features.contiguous()}, part, metadata={"pictures": _listed(pictures)})
    except SafetensorError as problem:
        raise OSError(f"{path} cannot be written ({problem})") from None


def write_stamps(path: Path, pictures: Iterable[Picture]) -> None:
    """Write `stamps.json`, atomically."""
    runs.write_text(path, _listed(pictures))


def _listed(pictures: Iterable[Picture]) -> str:
    return json.dumps([[one.path, one.stamp, one.digest] for one in pictures])


def _pictures(listed: list[Any]) -> list[Picture]:
    return [Picture(path, (stamped[0], stamped[1], stamped[2]), digest) for path, stamped, digest in listed]


def read_stamps(path: Path) -> list[Picture]:
    """Return the pictures that `stamps.json` lists; none when it does not exist.

    Raises:
        ValueError: it is damaged; names it.
    """
    try:
        return _pictures(runs.read_json(path)) if path.is_file() else []
    except (ValueError, TypeError, IndexError):
        raise ValueError(f"{path} is damaged; delete it, and pictures are compared by their bytes again") from None


def damaged(path: Path) -> str:
    """Say that a shard is damaged, and the mend."""
    return f"{path} is damaged or was cut off; delete it, and the features of its pictures are computed again"


def require_spec(folder: Path, spec: FeatureSpec) -> None:
    """Refuse a folder of other features.

    Raises:
        ValueError: it holds other files, or features of another tower, image mode or dtype.
    """
    if not (folder / SPEC).is_file():
        if folder.exists() and (not folder.is_dir() or any(not _unfinished(file) for file in folder.iterdir())):
            raise ValueError(f"{folder}: exists and is no folder of features (no {SPEC}); give another folder")
        return
    content, now = runs.read_json(folder / SPEC), spec.as_json()
    there = content.get("spec") if isinstance(content, dict) else None
    if not isinstance(there, dict):
        raise ValueError(f"{folder / SPEC}: does not describe features; give another folder")
    different = [name for name in {**there, **now} if there.get(name) != now.get(name)]
    if different:
        shown = "; ".join(f"{name} {there.get(name)} there, {now.get(name)} now" for name in different)
        raise ValueError(f"{folder}: holds features of another kind ({shown}); give another folder, or delete this one")


def _unfinished(file: Path) -> bool:
    """Tell what a process that was killed before it wrote the description leaves behind."""
    return file.name == ".lock" or file.name.endswith(".part")
