"""Compute what a folder of features lacks of a data set's pictures: every distinct picture once, in batches.

Results with features are those of the tower itself where the tower gives a picture the same numbers in any batch; on
some devices and in some dtypes they differ by rounding, and always when features are stored in a smaller dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from os import cpu_count
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from vlmsel import processes, runs
from vlmsel.data.feature_files import DTYPES, FeatureSpec, Picture, stamp
from vlmsel.data.features import FeatureCache, FeatureReader, require_room, writing
from vlmsel.data.images import Pictures, find_image
from vlmsel.models.fingerprints import fingerprint
from vlmsel.models.vision import VisionTower

SHARD_BYTES = 1 << 28  # held in memory until it is written, and lost when the process is killed
SHARD_ROWS = 4096
T = TypeVar("T")
Rows = dict[str, tuple[Picture, Tensor]]  # by the hash of a picture's bytes: its pixels or its features


def feature_spec(tower: VisionTower, mode: str, dtype: str | None = None) -> FeatureSpec:
    """Describe the features that a tower gives of pictures brought to a square by `mode`, stored as `dtype`.

    Raises:
        ValueError: there is no such dtype, or the tower is float16, which has no fingerprint.
    """
    computed = str(next(tower.parameters()).dtype).removeprefix("torch.")
    if not (found := fingerprint(tower)):
        raise ValueError(f"features of a {computed} tower cannot be kept: it has no fingerprint; load it as bfloat16")
    return FeatureSpec(
        tower=found,
        layer=tower.layer,
        size=tower.image_size,
        mode=mode,
        mean=tower.image_mean,
        std=tower.image_std,
        patches=tower.patches,
        width=tower.width,
        computed=computed,
        dtype=dtype or computed,
    )


def open_features(
    tower: VisionTower,
    mode: str,
    images: str | Path,
    names: Iterable[str],
    folder: str | Path,
    dtype: str | None = None,
    batch_size: int = 32,
    shard_rows: int | None = None,
) -> FeatureReader:
    """Return the features of pictures, after computing those that `folder` lacks or whose picture has changed.

    A picture that cannot be read has none; the data set's own check says why. Of several processes the main one
    computes.

    Args:
        tower: computes them, where it lies.
        mode: how pictures are brought to a square.
        images: the folder that names are relative to.
        names: pictures, as samples name them; repetitions do not matter.
        folder: where features are kept; made when it does not exist.
        dtype: what they are stored as: float32, bfloat16 or float16; as the tower computes when left out.
        batch_size: pictures that the tower takes at once.
        shard_rows: pictures in a file; about 256 MB when left out.

    Raises:
        ValueError: the folder holds something else or a damaged file, another process writes there, the disk has too
            little room, or a number does not fit `dtype`.
    """
    spec, folder = feature_spec(tower, mode, dtype), Path(folder)
    pictures = Pictures(Path(images), spec.size, spec.mode, spec.mean)
    paths = _find(images, names)
    reader = FeatureCache(folder, spec).reader(paths)
    if processes.is_main():
        missing = {name: path for name, path in paths.items() if name not in reader}
        build = _Build(tower, pictures, spec, batch_size, shard_rows or _shard_rows(spec))
        build.complete(folder, missing)
    processes.wait()
    return reader if len(reader.places) == len(paths) else FeatureCache(folder, spec).reader(paths)


def _shard_rows(spec: FeatureSpec) -> int:
    return max(1, min(SHARD_ROWS, SHARD_BYTES // spec.row_bytes))


def _find(images: str | Path, names: Iterable[str]) -> dict[str, Path]:
    """Return the files of those names that have one."""
    found = {}
    for name in tqdm(dict.fromkeys(names), desc="looking for images", unit="image", delay=2, dynamic_ncols=True):
        try:
            found[name] = find_image(images, name)
        except (ValueError, OSError):  # the data set's check tells
            continue
    return found


@dataclass(frozen=True)
class _Build:
    """Computes features of pictures for one tower."""

    tower: VisionTower
    pictures: Pictures
    spec: FeatureSpec
    batch_size: int
    shard_rows: int

    def complete(self, folder: Path, missing: Mapping[str, Path]) -> None:
        """Add pictures to a folder; nothing is locked or written when none of them can be read."""
        if all(self.read(item) is None for item in missing.items()):
            return
        with writing(folder, self.spec) as cache:
            missing = {name: path for name, path in missing.items() if cache.find(path) is None}
            if cache.rows:  # the same bytes may lie there under another stamp
                missing = _compare(cache, missing)
            require_room(folder, self.spec, len(missing))
            self.fill(cache, missing)

    def fill(self, cache: FeatureCache, missing: Mapping[str, Path]) -> None:
        """Run the tower over pictures and write shards as they become full."""
        waiting: Rows = {}
        copies: list[Picture] = []
        with tqdm(total=len(missing), desc="computing features", unit="image", delay=2, dynamic_ncols=True) as bar:
            for items, read in _ahead(self.read, list(missing.items()), self.batch_size):
                fresh: Rows = {}
                for picture, pixels in filter(None, read):
                    if any(picture.digest in known for known in (cache.rows, waiting, fresh)):
                        copies.append(picture)
                    else:
                        fresh[picture.digest] = picture, pixels
                waiting |= self.compute(fresh)
                while len(waiting) >= self.shard_rows:
                    waiting = self.write(cache, waiting)
                bar.update(len(items))
        self.write(cache, waiting)
        cache.remember(copies)

    def read(self, item: tuple[str, Path]) -> tuple[Picture, Tensor] | None:
        """Read one picture; None when that cannot be done."""
        name, path = item
        try:
            picture = _look(path)
            pixels = self.pictures(name)
            same = stamp(path) == picture.stamp
        except (ValueError, OSError):
            return None
        if not same:
            raise ValueError(f"{path} changed while it was read; run again when nothing writes there")
        return picture, pixels

    def compute(self, fresh: Rows) -> Rows:
        """Replace pixels by features in the dtype they are stored in.

        Raises:
            ValueError: a feature is beyond the range of this dtype.
        """
        if not fresh:
            return {}
        pictures, pixels = zip(*fresh.values(), strict=True)
        exact = self.tower(torch.stack(pixels).to(self.tower.device))
        stored = exact.to(DTYPES[self.spec.dtype]).cpu()
        lost = (exact.isfinite().cpu() & ~stored.isfinite()).flatten(1).any(dim=1).tolist()
        if any(lost):
            first = pictures[lost.index(True)].path
            raise ValueError(f"{first}: a feature is beyond the range of {self.spec.dtype}; store bfloat16 instead")
        return {one.digest: (one, features) for one, features in zip(pictures, stored.unbind(), strict=True)}

    def write(self, cache: FeatureCache, waiting: Rows) -> Rows:
        """Write the first rows as a shard and return the others."""
        rows = list(waiting.items())
        if rows:
            pictures, features = zip(*(row for _, row in rows[: self.shard_rows]), strict=True)
            cache.append(pictures, torch.stack(features))
        return dict(rows[self.shard_rows :])


def _compare(cache: FeatureCache, missing: Mapping[str, Path]) -> dict[str, Path]:
    """Record pictures whose bytes are known under another stamp; return the others."""
    known, others = [], {}
    with tqdm(total=len(missing), desc="comparing images", unit="image", delay=2, dynamic_ncols=True) as bar:
        for items, looks in _ahead(_try_look, list(missing.items()), 256):
            for (name, path), picture in zip(items, looks, strict=True):
                if picture is not None and picture.digest in cache.rows:
                    known.append(picture)
                else:
                    others[name] = path
            bar.update(len(items))
    cache.remember(known)
    return others


def _look(path: Path) -> Picture:
    """Hash a file; its stamp is taken before, so that a later change shows."""
    before = stamp(path)
    return Picture(str(path), before, runs.file_hash(path))


def _try_look(item: tuple[str, Path]) -> Picture | None:
    try:
        return _look(item[1])
    except OSError:
        return None


def _ahead(call: Callable[[Any], T], items: Sequence[Any], size: int) -> Iterator[tuple[Sequence[Any], list[T]]]:
    """Apply a call to batches of items in threads, one batch ahead of the batch that is being used."""
    batches = [items[start : start + size] for start in range(0, len(items), size)]
    with ThreadPool(min(8, cpu_count() or 1)) as pool:
        jobs = [pool.map_async(call, batch) for batch in batches[:1]]
        for index, batch in enumerate(batches):
            jobs += [pool.map_async(call, later) for later in batches[index + 1 : index + 2]]
            yield batch, jobs.pop(0).get()
