"""A pool as an index: which of its records are samples, where those come from, and how to read one when it is needed.

One pass over the file finds the problems; what stays in memory is some 30 bytes per record, whatever they hold.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from vlmsel.data.formats.base import Form
from vlmsel.data.formats.pictures import Picture
from vlmsel.data.kept import MANY, Found, kept, looked_at
from vlmsel.data.rows import Unread
from vlmsel.data.sample import Problem, Sample


class Samples(Sequence[Sample]):
    """The usable samples of a pool, by position; each is read and parsed when it is asked for.

    Args:
        form: parses a record.
        records: the records of the pool.
        uids: the uid of each sample, ascending.
        images: how many images each has.
        codes: its source, as a number in `names`.
        names: the sources.
        placeless: how many have an image that lies in the image folder.
    """

    def __init__(
        self,
        form: Form,
        records: Sequence[Any],
        uids: np.ndarray,
        images: np.ndarray,
        codes: np.ndarray,
        names: Sequence[str],
        placeless: int,
    ) -> None:
        self.form, self.records, self.uids, self.images, self.codes = form, records, uids, images, codes
        self.names, self.placeless = tuple(names), placeless

    def __len__(self) -> int:
        return len(self.uids)

    @overload
    def __getitem__(self, position: int) -> Sample: ...
    @overload
    def __getitem__(self, position: slice) -> list[Sample]: ...
    def __getitem__(self, position: int | slice) -> Sample | list[Sample]:
        if isinstance(position, slice):
            return [self[one] for one in range(*position.indices(len(self)))]
        uid = int(self.uids[position])
        return self.form.parse(uid, self.records[uid])

    def __iter__(self) -> Iterator[Sample]:
        return (self[position] for position in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Sequence)
            and len(self) == len(other)
            and all(a == b for a, b in zip(self, other, strict=True))
        )

    @property
    def sources(self) -> list[str]:
        """The source of each sample, by position."""
        return [self.names[code] for code in self.codes]


@dataclass(frozen=True)
class Pool:
    """What a file holds: usable samples, one problem per unusable one, and all records, read when they are needed."""

    samples: Samples
    problems: list[Problem]
    records: Sequence[Any]


def read_pool(form: Form, path: Path) -> Pool:
    """Go through the records of a file once and say which can be used; of a large one what is found is kept.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file as a whole cannot be read.
    """
    records = form.read(path)
    key = ("records", form.name, form.digest(path)) if len(records) >= MANY else None
    arrays, about = kept(len(records), key, lambda: _looked(form, records))
    samples = Samples(form, records, **arrays, names=about["names"], placeless=about["placeless"])
    return Pool(samples, [Problem(*problem) for problem in about["problems"]], records)


def _looked(form: Form, records: Sequence[Any]) -> Found:
    """Parse every record; each process of a run does, as all want to know."""
    uids, images, codes = array("q"), array("i"), array("i")
    names: dict[str, int] = {}
    problems, placeless = [], 0

    def look(uid: int) -> tuple[str, int, bool] | str | Unread:
        try:
            record = records[uid]
        except ValueError as problem:  # of the whole file; raised here it would bring a worker's traceback with it
            return Unread(str(problem))
        try:
            sample = form.parse(uid, record)
        except ValueError as reason:
            return str(reason)
        return sample.source, len(sample.images), needs_folder(sample)

    every = range(len(records))
    looks = looked_at(look, every, "reading samples") if len(records) >= MANY else [(every, map(look, every))]
    for uid, found in (pair for own, results in looks for pair in zip(own, results, strict=True)):
        if isinstance(found, Unread):
            raise ValueError(found.reason)
        if isinstance(found, str):
            problems.append((uid, found))
            continue
        uids.append(uid)
        images.append(found[1])
        codes.append(names.setdefault(found[0], len(names)))
        placeless += found[2]
    arrays: dict[str, np.ndarray] = {
        "uids": np.array(uids, np.int64),
        "images": np.array(images, np.int32),
        "codes": np.array(codes, np.int32),
    }
    return Found(arrays, {"names": list(names), "placeless": placeless, "problems": problems})


def needs_folder(sample: Sample) -> bool:
    """Tell whether a sample has an image that does not know where it lies."""
    return not all(isinstance(image, Picture) for image in sample.images)
