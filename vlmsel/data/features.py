"""Patch features of pictures, computed once by the frozen tower and kept on disk: [patches, width] per picture.

A picture is known by the SHA-256 of its bytes, so that a changed one never gets stale features and one picture under
several names is stored once. Its stamp (real path, length, times of the last change of content and of entry) tells
without opening it that the bytes are still those; copying tools can forge the first time, not the second. Another stamp
costs reading the bytes, other bytes the tower.

A killed writer goes on after its last shard. Any number of processes may read while one writes. A row is read, not
memory-mapped: it needs the memory of one row either way, and a file that was cut off is an error with its name instead
of a signal.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vlmsel import runs
from vlmsel.data.feature_files import (
    DTYPES,
    SHARDS,
    SPEC,
    STAMPS,
    FeatureSpec,
    Picture,
    Stamp,
    damaged,
    read_shard,
    read_stamps,
    require_spec,
    shard_path,
    stamp,
    write_shard,
    write_stamps,
)

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]


@dataclass(frozen=True)
class FeatureReader:
    """Features of the pictures of one data set by the names that its samples use; small, and safe to pickle.

    `places` gives the shard and the byte where a picture's features begin.
    """

    folder: Path
    spec: FeatureSpec
    places: Mapping[str, tuple[int, int]]

    def __contains__(self, name: str) -> bool:
        return name in self.places

    def __call__(self, name: str) -> Tensor:
        """Read a picture's features. -> [patches, width]

        Raises:
            OSError, ValueError: the shard is gone or was cut off; names it.
        """
        number, start = self.places[name]
        path = shard_path(self.folder, number)
        raw = np.fromfile(path, np.uint8, self.spec.row_bytes, offset=start)
        if len(raw) != self.spec.row_bytes:
            raise ValueError(damaged(path))
        return torch.from_numpy(raw).view(DTYPES[self.spec.dtype]).view(self.spec.patches, self.spec.width)


class FeatureCache:
    """What a folder holds of the features that `spec` describes; nothing when it does not exist.

    `rows` gives the place of each content, `known` the content of each path and stamp.

    Raises:
        ValueError: the folder holds something else, or a file in it is damaged; names it.
    """

    def __init__(self, folder: str | Path, spec: FeatureSpec) -> None:
        self.folder, self.spec = Path(folder), spec
        self.rows: dict[str, tuple[int, int]] = {}
        self.known: dict[tuple[str, Stamp], str] = {}
        self._next = 0
        require_spec(self.folder, spec)
        for path in sorted((self.folder / SHARDS).glob("*.safetensors")):
            start, pictures = read_shard(path, spec)
            self._add(int(path.stem), start, pictures)
        self._extra = {picture.path: picture for picture in read_stamps(self.folder / STAMPS)}
        self._know(self._extra.values())

    def find(self, path: str | Path) -> tuple[int, int] | None:
        """Return the place of a picture's features; None when they are missing or the file may have changed."""
        try:
            return self.rows.get(self.known.get((str(path), stamp(path)), ""))
        except OSError:
            return None

    def reader(self, paths: Mapping[str, Path]) -> FeatureReader:
        """Return the features of those named files that have some."""
        found = {name: self.find(path) for name, path in paths.items()}
        return FeatureReader(self.folder, self.spec, {name: place for name, place in found.items() if place})

    def append(self, pictures: Sequence[Picture], features: Tensor) -> None:
        """Write the features [k, patches, width] of k pictures as a new shard.

        Raises:
            OSError: it cannot be written.
        """
        assert features.shape == (len(pictures), self.spec.patches, self.spec.width), list(features.shape)
        assert features.dtype == DTYPES[self.spec.dtype], features.dtype
        path = shard_path(self.folder, self._next)
        write_shard(path, pictures, features)
        start, _ = read_shard(path, self.spec)
        self._add(self._next, start, pictures)

    def remember(self, pictures: Sequence[Picture]) -> None:
        """Record where else, or since when, files lie whose content has features."""
        if pictures:
            self._extra |= {one.path: one for one in pictures}
            self._know(pictures)
            write_stamps(self.folder / STAMPS, self._extra.values())

    def _add(self, number: int, start: int, pictures: Sequence[Picture]) -> None:
        for row, picture in enumerate(pictures):
            self.rows[picture.digest] = number, start + row * self.spec.row_bytes
        self._know(pictures)
        self._next = max(self._next, number + 1)

    def _know(self, pictures: Iterable[Picture]) -> None:
        self.known |= {(picture.path, picture.stamp): picture.digest for picture in pictures}


@contextmanager
def writing(folder: str | Path, spec: FeatureSpec) -> Iterator[FeatureCache]:
    """Keep other writers out of a folder, which is made, and give what it holds now.

    Raises:
        ValueError: another process is writing, or the folder holds something else.
    """
    folder = Path(folder)
    require_spec(folder, spec)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        require_spec(folder, spec)
        if not (folder / SPEC).is_file():
            runs.write_json(folder / SPEC, {"spec": spec.as_json(), "environment": runs.environment()})
        for left in (folder / SHARDS).glob("*.part"):  # by a writer that was killed
            left.unlink()
        yield FeatureCache(folder, spec)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock; the system drops it when the process ends, however it ends."""
    with open(folder / ".lock", "w") as file:
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{folder}: another process is writing features here; wait until it ends") from None
        except OSError:  # a file system without locks
            pass
        yield


def require_room(folder: Path, spec: FeatureSpec, count: int) -> None:
    """Refuse to begin what the disk has no room for.

    Raises:
        ValueError: the features of `count` pictures need more than is free.
    """
    need, free = count * spec.row_bytes, shutil.disk_usage(folder).free
    if need > free:
        size = DTYPES[spec.dtype].itemsize
        half = f", or store bfloat16 ({_bytes(need * 2 // size)})" if size > 2 else ""
        raise ValueError(
            f"{folder}: features of {count} pictures need {_bytes(need)} ({spec.patches} patches x {spec.width} x "
            f"{size} bytes each), {_bytes(free)} are free; give a folder on a larger disk{half}"
        )


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
