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
    """Go through the records of a file once and say which can be used.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file as a whole cannot be read.
    """
    records = form.read(path)
    uids, images, codes = array("q"), array("i"), array("i")
    names: dict[str, int] = {}
    problems, placeless = [], 0
    for uid, record in enumerate(records):
        try:
            sample = form.parse(uid, record)
        except ValueError as reason:
            problems.append(Problem(uid, str(reason)))
            continue
        uids.append(uid)
        images.append(len(sample.images))
        placeless += needs_folder(sample)
        codes.append(names.setdefault(sample.source, len(names)))
    counts, told = np.array(images, np.int32), np.array(codes, np.int32)
    samples = Samples(form, records, np.array(uids, np.int64), counts, told, list(names), placeless)
    return Pool(samples, problems, records)


def needs_folder(sample: Sample) -> bool:
    """Tell whether a sample has an image that does not know where it lies."""
    return not all(isinstance(image, Picture) for image in sample.images)
