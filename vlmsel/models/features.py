"""Compute what a folder of features lacks of a data set's pictures: every distinct picture once, in batches.

Results with features are those of the tower itself where the tower gives a picture the same numbers in any batch; on
some devices and in some dtypes they differ by rounding, and always when features are stored in a smaller dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from multiprocessing.pool import ThreadPool
from os import cpu_count
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from vlmsel import processes, runs
from vlmsel.data.dataset import shown
from vlmsel.data.features import DTYPES, FeatureFolder, FeatureReader, FeatureSpec, look, require_room, writing
from vlmsel.data.images import Pictures, find_image
from vlmsel.models.fingerprints import fingerprint
from vlmsel.models.vision import VisionTower

LIBRARIES = ("pillow", "torch", "open_clip_torch")  # what features come from
THREADS = min(8, cpu_count() or 1)
T = TypeVar("T")


def feature_spec(tower: VisionTower, mode: str, dtype: str | None = None, exif: bool = False) -> FeatureSpec:
    """Describe the features that a tower gives of pictures, read with `exif` and brought to a square by `mode`.

    Raises:
        ValueError: there is no such dtype, or the tower is float16, which has no fingerprint.
    """
    computed = str(next(tower.parameters()).dtype).removeprefix("torch.")
    if not (found := fingerprint(tower.state_dict())):
        raise ValueError(f"features of a {computed} tower cannot be kept: it has no fingerprint; load it as bfloat16")
    versions = runs.versions()
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
        exif=exif,
        libraries=", ".join(f"{name} {versions[name]}" for name in LIBRARIES),
    )


def open_features(
    tower: VisionTower,
    mode: str,
    images: str | Path,
    names: Iterable[str],
    folder: str | Path,
    dtype: str | None = None,
    batch_size: int = 32,
    exif: bool = False,
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
        exif: turn pictures as their orientation tags say.

    Raises:
        ValueError: the folder holds something else or a damaged file, another process writes there, the disk has too
            little room, or a number does not fit `dtype`.
    """
    spec, paths = feature_spec(tower, mode, dtype, exif), _find(images, names)
    reader = FeatureFolder(folder, spec).reader(paths)
    missing = {name: path for name, path in paths.items() if name not in reader}
    pictures = Pictures(Path(images), spec.size, spec.mode, spec.mean, exif=exif)
    # nothing is locked or written for pictures none of which can be read
    if processes.is_main() and not all(map(pictures.problem, missing)):
        with writing(folder, spec) as kept:
            fresh = _without_features(kept, missing)
            require_room(kept.folder, spec, len(fresh))
            _fill(kept, tower, pictures, fresh, batch_size)
    processes.wait()
    return FeatureFolder(folder, spec).reader(paths) if missing else reader


def _find(images: str | Path, names: Iterable[str]) -> dict[str, Path]:
    """Return the files of those names that have one."""
    found = {}
    for name in shown(dict.fromkeys(names), "looking for images", "image"):
        try:
            found[name] = find_image(images, name)
        except (ValueError, OSError):  # the data set's check tells
            continue
    return found


def _without_features(kept: FeatureFolder, missing: Mapping[str, Path]) -> list[tuple[str, str, Path]]:
    """Hash pictures that may have changed; return hash, name and path of each distinct one that has no features."""
    paths = [path for path in missing.values() if kept.digest(path) is None]
    with ThreadPool(THREADS) as pool:
        looks = shown(pool.imap(look, paths, 16), "comparing images", "image", len(paths))
        kept.remember({str(path): seen for path, seen in zip(paths, looks, strict=True) if seen is not None})
    digests = {kept.digest(path): (name, path) for name, path in missing.items()}
    return [(digest, *where) for digest, where in digests.items() if digest is not None and digest not in kept]


def _fill(
    kept: FeatureFolder,
    tower: VisionTower,
    pictures: Pictures,
    fresh: Sequence[tuple[str, str, Path]],
    batch_size: int,
) -> None:
    """Run the tower over pictures, given with their hashes and paths, and keep what it gives."""

    def read(one: tuple[str, str, Path]) -> tuple[str, Path, Tensor] | None:
        digest, name, path = one
        try:
            pixels = pictures(name)
        except (ValueError, OSError):
            return None
        if kept.digest(path) != digest:
            raise ValueError(f"{path} changed while it was read; run again when nothing writes there")
        return digest, path, pixels

    batches = -(-len(fresh) // batch_size)
    for batch in shown(_ahead(read, fresh, batch_size), "computing features", "batch", batches):
        if not any(batch):
            continue
        digests, paths, pixels = zip(*filter(None, batch), strict=True)
        exact = tower(torch.stack(pixels).to(tower.device))
        for digest, features in zip(digests, _stored(exact, paths, kept.spec.dtype), strict=True):
            kept.save(digest, features)


def _stored(exact: Tensor, paths: Sequence[Path], dtype: str) -> Tensor:
    """Bring the features [m, patches, width] of pictures to the dtype they are stored in, on the CPU."""
    stored = exact.to(DTYPES[dtype])
    lost = (exact.isfinite() & ~stored.isfinite()).flatten(1).any(dim=1).tolist()
    if any(lost):
        raise ValueError(f"{paths[lost.index(True)]}: a feature is beyond the range of {dtype}; store bfloat16 instead")
    return stored.cpu()


def _ahead(call: Callable[[Any], T], items: Sequence[Any], size: int) -> Iterator[list[T]]:
    """Apply a call to batches of items in threads, one batch ahead of the batch that is being used."""
    with ThreadPool(THREADS) as pool:
        jobs = []
        for start in range(0, len(items), size):
            jobs.append(pool.map_async(call, items[start : start + size]))
            if len(jobs) > 1:
                yield jobs.pop(0).get()
        for job in jobs:
            yield job.get()
