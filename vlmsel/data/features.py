"""Patch features of pictures, computed once by the frozen tower and kept on disk: [patches, width] per picture.

    spec.json        what they depend on: tower, layer, image mode, size, dtypes, normalisation
    stamps.json      the stamp and the hash of each picture that was read, by its path
    <aa>/<hash>.bin  the features of the picture whose bytes have this hash, number by number

A picture is known by the SHA-256 of its bytes, so that a changed one never gets stale features and one picture under
several names is stored once. Its stamp (length, times of the last change of content and of entry) tells without opening
it that the bytes are still those; copying tools can forge the first time, not the second. Another stamp costs reading
the bytes, other bytes the tower.

A file of features has its name only when it is complete: a killed writer goes on after the last one, and any number of
processes may read while one writes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlmsel import runs
from vlmsel.checks import check_choice

DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}
SPEC, STAMPS = "spec.json", "stamps.json"


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
        exif: whether pictures are turned as their orientation tags say.
        libraries: what made them, with versions.
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
    exif: bool = False
    libraries: str = ""

    def __post_init__(self) -> None:
        check_choice(tuple(DTYPES), **{"the dtype of features": self.dtype})

    @property
    def picture_bytes(self) -> int:
        """Bytes of one picture's features.

        >>> FeatureSpec("", -2, 336, "pad", (), (), 576, 1024, "bfloat16", "bfloat16").picture_bytes
        1179648
        """
        return self.patches * self.width * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class FeatureReader:
    """Features of the pictures of one data set; small, and safe to pickle.

    `digests` gives the hash of a picture's bytes by the name that samples use.
    """

    folder: Path
    spec: FeatureSpec
    digests: Mapping[str, str]

    def __contains__(self, name: str) -> bool:
        return name in self.digests

    def __call__(self, name: str) -> Tensor:
        """Read a picture's features. -> [patches, width]

        Raises:
            OSError, ValueError: the file is gone or was cut off; names it.
        """
        path = feature_path(self.folder, self.digests[name])
        raw = np.fromfile(path, np.uint8)
        if len(raw) != self.spec.picture_bytes:
            raise ValueError(f"{path} is damaged or was cut off; run again, which computes it anew")
        return torch.from_numpy(raw).view(DTYPES[self.spec.dtype]).view(self.spec.patches, self.spec.width)


class FeatureFolder:
    """What a folder holds of the features that `spec` describes; nothing when it does not exist.

    Raises:
        ValueError: the folder holds something else, or its stamps are damaged; names the file.
    """

    def __init__(self, folder: str | Path, spec: FeatureSpec) -> None:
        self.folder, self.spec = Path(folder), spec
        require_spec(self.folder, spec)
        path = self.folder / STAMPS
        self._seen: dict[str, list[Any]] = runs.read_json(path) if path.is_file() else {}
        if not isinstance(self._seen, dict):
            raise ValueError(f"{path} is damaged; delete it, and pictures are compared by their bytes again")

    def __contains__(self, digest: str) -> bool:
        """Tell whether there are whole features of the picture with this hash."""
        found = stamp(feature_path(self.folder, digest))
        return found is not None and found[0] == self.spec.picture_bytes

    def digest(self, path: Path) -> str | None:
        """Return the hash of a picture that has not changed since it was read; None when it may have."""
        *stamped, digest = self._seen.get(str(path), (None,))
        return digest if stamped == stamp(path) else None

    def reader(self, paths: Mapping[str, Path]) -> FeatureReader:
        """Return the features of those named pictures that have some."""
        digests = {name: one for name, path in paths.items() if (one := self.digest(path)) and one in self}
        return FeatureReader(self.folder, self.spec, digests)

    def remember(self, seen: Mapping[str, list[Any]]) -> None:
        """Record pictures by path, as `look` sees them."""
        self._seen |= seen
        runs.write_text(self.folder / STAMPS, json.dumps(self._seen))

    def save(self, digest: str, features: Tensor) -> None:
        """Write the features [patches, width] of the picture with this hash.

        Raises:
            OSError: they cannot be written.
        """
        assert features.shape == (self.spec.patches, self.spec.width), list(features.shape)
        assert features.dtype == DTYPES[self.spec.dtype], features.dtype
        with runs.atomic_path(feature_path(self.folder, digest), durable=False) as part:  # its length tells
            features.contiguous().view(torch.uint8).numpy().tofile(part)


@contextmanager
def writing(folder: str | Path, spec: FeatureSpec) -> Iterator[FeatureFolder]:
    """Keep other processes from writing in a folder, which is made, and give what it holds now.

    Raises:
        ValueError: another process is writing, or the folder holds something else.
    """
    folder = Path(folder)
    require_spec(folder, spec)
    folder.mkdir(parents=True, exist_ok=True)
    runs.lock(folder / ".lock")
    try:
        kept = FeatureFolder(folder, spec)
        if not (folder / SPEC).is_file():
            runs.write_json(folder / SPEC, {"spec": asdict(spec), "environment": runs.environment()})
        runs.tidy(folder)
        yield kept
    finally:
        runs.unlock(folder / ".lock")


def feature_path(folder: Path, digest: str) -> Path:
    """Return where the features of a picture lie; folders by the first two digits keep each of them small."""
    return folder / digest[:2] / f"{digest}.bin"


def stamp(path: Path) -> list[int] | None:
    """Return a file's length and the times when its content and its entry last changed, in ns; None when it is gone."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def look(path: Path) -> list[Any] | None:
    """Return a picture's stamp and, behind it, the hash of its bytes; None when it cannot be read."""
    before = stamp(path)  # the stamp first, so that a later change shows
    try:
        return before and [*before, runs.file_hash(path)]
    except OSError:
        return None


def require_room(folder: Path, spec: FeatureSpec, count: int) -> None:
    """Refuse to begin what the disk has no room for.

    Raises:
        ValueError: the features of `count` pictures need more than is free.
    """
    need, free = count * spec.picture_bytes, shutil.disk_usage(folder).free
    if need > free:
        size = DTYPES[spec.dtype].itemsize
        half = f", or store bfloat16 ({_bytes(need * 2 // size)})" if size > 2 else ""
        raise ValueError(
            f"{folder}: features of {count} pictures need {_bytes(need)} ({spec.patches} patches x {spec.width} x "
            f"{size} bytes each), {_bytes(free)} are free; give a folder on a larger disk{half}"
        )


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def require_spec(folder: Path, spec: FeatureSpec) -> None:
    """Refuse a folder of other features.

    Raises:
        ValueError: it holds other files, or features of another tower, image mode or dtype.
    """
    path, now = folder / SPEC, json.loads(json.dumps(asdict(spec)))
    if not path.is_file():
        if folder.exists() and (not folder.is_dir() or any(runs.contents(folder))):
            raise ValueError(f"{folder}: exists and is no folder of features (no {SPEC}); give another folder")
        return
    content = runs.read_json(path)
    there = content.get("spec") if isinstance(content, dict) else None
    if not isinstance(there, dict):
        raise ValueError(f"{path}: does not describe features; give another folder")
    if different := [name for name in {**there, **now} if there.get(name) != now.get(name)]:
        shown = "; ".join(f"{name} {there.get(name)} there, {now.get(name)} now" for name in different)
        raise ValueError(f"{folder}: holds features of another kind ({shown}); give another folder, or delete this one")
