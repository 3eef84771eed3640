"""A file of samples as a model reads it: what can be used, and why the rest cannot."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlmsel import processes, runs
from vlmsel.data.dataset import Reading, SampleDataset
from vlmsel.data.formats import pool_digest, read_samples
from vlmsel.data.formats.choice import read_choice, refuse_choice
from vlmsel.data.formats.pictures import Picture
from vlmsel.data.images import GONE
from vlmsel.models.subject import Subject

FIRST = 256  # samples of a large pool of which one can be used before work begins
MISSING = 0.05  # of a file's samples may lack a picture before it is refused


@dataclass(frozen=True)
class Pool:
    """The samples of a file, why those that cannot be used cannot (by uid), and how many it has in all.

    `sha256` is that of the file, or of all files that it is made of, when it was read, and of what of it was chosen;
    `limit` how many positions the model has, where it says so. Problems of encoding are there where it is `complete`.
    """

    path: Path
    sha256: str
    samples: SampleDataset
    problems: dict[int, str]
    total: int
    limit: int | None = None
    complete: bool = False

    def measured(self) -> Pool:
        """Return the pool with all problems, after encoding every sample that was not.

        Raises:
            ValueError: no sample can be used.
        """
        if self.complete:
            return self
        problems = self.problems | self.samples.check()
        if not self.samples.usable():
            first = [f"; the first, sample {uid}: {reason}" for uid, reason in problems.items()]
            raise ValueError(f"{self.path}: no usable sample{(first or [': the list is empty'])[0]}")
        _say_cut(self.samples, self.path, self.limit)
        return replace(self, problems=problems, complete=True)

    def report(self, out: Path, more: Mapping[int, str] | None = None) -> None:
        """Write `out` (uid and reason of each sample left out) and print one line; no file when all are well.

        The first of several processes does.
        """
        if processes.is_main():
            runs.report_left_out(out, {**self.problems, **(more or {})}, self.total, self.path)

    def share(self, used: int) -> str:
        """Say of how many samples so many are, where they are not all.

        >>> Pool(Path("p"), "", [], {}, 9).share(7), Pool(Path("p"), "", [], {}, 9).share(9)
        (' of 9', '')
        """
        return "" if used == self.total else f" of {self.total}"

    @property
    def missing(self) -> int:
        """How many samples lack a picture."""
        return sum(GONE in reason for reason in self.problems.values())

    def inputs(self, name: str) -> dict[str, str]:
        """Name what depends on the file by its content: `name` is what it is called."""
        usable = hashlib.sha256(repr(self.samples.candidates()).encode()).hexdigest()
        return {
            f"{name} ({self.path})": self.sha256,
            f"pictures of {name}": self.samples.pictures_digest(),
            f"which samples of {name} can be used": usable,
        }


def open_pool(
    subject: Subject,
    path: str | Path,
    reading: Reading,
    features: str | Path | None = None,
    feature_dtype: str | None = None,
    measured: bool = True,
    only: str | Path | None = None,
) -> Pool:
    """Read a file of samples for a model and check every sample of it.

    Args:
        subject, path, reading: the model, the file and how it is read.
        features: a folder of features; those that it lacks are computed first, and samples hold features instead of
            pictures.
        feature_dtype: what features are stored as; as the tower computes when left out.
        measured: encode every sample; otherwise those of a large pool are encoded when their turn comes, and what is
            wrong with them is known after `Pool.measured`. Several processes always do it first, together.
        only: a choice from the file, as `vlmsel select --write uids` and `weights` leave it; all samples when None.

    Raises:
        FileNotFoundError, ValueError: the file or the image folder as a whole cannot be used, no folder is named and
            there are images, or no sample can be used.
    """
    if subject.reads_with and processes.is_main():
        print(f"{path}: read with {subject.reads_with}")
    refuse_choice(path)
    found, sha256 = read_samples(path), pool_digest(path)
    total, key = len(found.records), _key(subject, reading, sha256)
    if only is not None:
        uids = read_choice(only, path, total)
        found, total, sha256 = found.only(uids), len(uids), hashlib.sha256(f"{sha256} {uids}".encode()).hexdigest()
        key = None if key is None else (key, sha256)
    if features:
        names = [image for sample in found.samples for image in sample.images]
        if any(isinstance(name, Picture) for name in names):
            raise ValueError(f"{path}: features are kept of pictures in the image folder alone; leave --features out")
        reading = replace(reading, features=subject.features(reading, names, features, feature_dtype))
    samples = SampleDataset(found.samples, subject, reading, key, sha256)
    problems = {problem.uid: problem.reason for problem in found.problems} | samples.check_pictures()
    _refuse_missing(problems, total, path, reading)
    pool = Pool(Path(path), sha256, samples, problems, total, subject.positions)
    begin = not measured and samples.large and processes.count() == 1
    return pool if begin and samples.lengths_of(samples.candidates()[:FIRST]) else pool.measured()


def _refuse_missing(problems: Mapping[int, str], total: int, path: str | Path, reading: Reading) -> None:
    """Refuse a file of which more than `MISSING` have a picture that is not there: the folder may be another."""
    lost = [uid for uid, reason in problems.items() if GONE in reason]
    if len(lost) > MISSING * total and not reading.allow_missing:
        raise ValueError(
            f"{path}: the pictures of {len(lost)} of {total} samples are missing in {reading.images} (the first, "
            f"sample {lost[0]}: {problems[lost[0]]}); give the right --images (targets: --target_images), or go on "
            "without them, --allow_missing true"
        )


def _key(subject: Subject, reading: Reading, sha256: str) -> Any:
    """Return what the sizes of a pool's samples depend on beside pictures; None where the model does not say it."""
    if (settings := subject.measures()) is None:
        return None
    how = sha256, reading.max_length, reading.loss_on, settings, type(subject).__qualname__
    return how, sorted(runs.versions().items())


def _say_cut(samples: SampleDataset, path: str | Path, limit: int | None) -> None:
    """Print how many samples the model's own positions cut, where they are fewer than was asked for."""
    asked = samples.reading.max_length
    if limit is None or limit >= asked or not (count := sum(length >= limit for length in samples.lengths())):
        return
    if processes.is_main():
        print(
            f"{path}: {count} of {len(samples)} samples fill the model's {limit} positions; what is longer is cut "
            f"there, before max_length {asked}"
        )
