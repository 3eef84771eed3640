"""A pool as an index: which of its records are samples, where those come from, and how to read one when it is needed.

One pass over the file finds the problems; what stays in memory is some 30 bytes per record, whatever they hold.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import pyarrow as pa

from vlmsel.data.formats.base import Form, key_of
from vlmsel.data.formats.pictures import Picture
from vlmsel.data.kept import CHUNK, Found, kept, large, looked_at
from vlmsel.data.rows import Unread
from vlmsel.data.sample import Problem, Sample


class Columns(NamedTuple):
    """Of each usable sample, by position: its uid, ascending; how many images it has; its source, as a number; what it
    shows and says, as `key_of` has it."""

    uids: np.ndarray
    images: np.ndarray
    codes: np.ndarray
    keys: np.ndarray


class Samples(Sequence[Sample]):
    """The usable samples of a pool, by position; each is read and parsed when it is asked for.

    Args:
        form: parses a record.
        records: the records of the pool.
        columns: what is known of the samples.
        names: the sources that numbers stand for.
        placeless: how many have an image that lies in the image folder.
        ids: the `id` of every record, by uid, "" for one without; empty where no record has one.
    """

    def __init__(
        self,
        form: Form,
        records: Sequence[Any],
        columns: Columns,
        names: Sequence[str],
        placeless: int,
        ids: pa.StringArray,
    ) -> None:
        self.form, self.records, self.columns = form, records, columns
        self.uids, self.images, self.codes, self.keys = columns
        self.names, self.placeless, self.ids = tuple(names), placeless, ids

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

    def only(self, uids: Sequence[int]) -> Samples:
        """Return those samples whose uids are among these, in their order here."""
        chosen = np.isin(self.uids, np.asarray(uids, np.int64))
        kept = Columns(*(one[chosen] for one in self.columns))
        found = Samples(self.form, self.records, kept, self.names, 0, self.ids)
        if self.placeless:
            found.placeless = sum(needs_folder(found[place]) for place in np.flatnonzero(found.images).tolist())
        return found

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

    def only(self, uids: Sequence[int]) -> Pool:
        """Return the pool of these records alone, which keep their uids and places in `records`."""
        return Pool(self.samples.only(uids), [one for one in self.problems if one.uid in {*uids}], self.records)


def read_pool(form: Form, path: Path) -> Pool:
    """Go through the records of a file once and say which can be used; of a large one what is found is kept.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file as a whole cannot be read.
    """
    records = form.read(path)
    key = ("records", form.name, form.digest(path)) if large(len(records)) else None
    arrays, about = kept(len(records), key, lambda: _looked(form, records))
    ids = _joined(arrays.pop("id_ends"), arrays.pop("id_bytes"))
    samples = Samples(form, records, Columns(**arrays), about["names"], about["placeless"], ids)
    return Pool(samples, [Problem(*problem) for problem in about["problems"]], records)


class _Run(NamedTuple):
    """What is found in a run of records: of samples uids, numbers of images, of their source in `names`, and keys; how
    many have an image that lies in the image folder; problems by uid; all records' ids, none where none has one."""

    uids: array[int]
    images: array[int]
    codes: array[int]
    keys: array[int]
    names: list[str]
    placeless: int
    problems: list[tuple[int, str]]
    ids: list[str]


def _looked(form: Form, records: Sequence[Any]) -> Found:
    """Parse every record; each process of a run does, as all want to know."""

    def look(own: Sequence[int]) -> _Run | Unread:
        try:
            found = records[own[0] : own[-1] + 1]
        except ValueError as problem:  # of the whole file; raised here it would bring a worker's traceback with it
            return Unread(str(problem))
        return _run(form, own, found)

    every = range(len(records))
    parts = (every[start : start + CHUNK] for start in range(0, len(every), CHUNK))
    many = large(len(records))
    arrays: dict[str, list[Any]] = {"uids": [], "images": [], "codes": [], "keys": []}
    names: dict[str, int] = {}
    problems, placeless, ids = [], 0, []
    looks = looked_at(look, every, "reading samples") if many else ((part, look(part)) for part in parts)
    with closing(looks) as runs:  # an error would keep the processes with its traceback
        for own, run in runs:
            if isinstance(run, Unread):
                raise ValueError(run.reason)
            ids.append(pa.array(run.ids or [""] * len(own), pa.string()))
            codes = np.array([names.setdefault(name, len(names)) for name in run.names], np.int32)
            arrays["uids"].append(np.array(run.uids, np.int64))
            arrays["images"].append(np.array(run.images, np.int32))
            arrays["codes"].append(codes[np.array(run.codes, np.int64)])
            arrays["keys"].append(np.array(run.keys, np.int64))
            problems += run.problems
            placeless += run.placeless
    kinds = {"uids": np.int64, "images": np.int32, "codes": np.int32, "keys": np.int64}
    whole = {name: np.concatenate([np.zeros(0, kinds[name]), *arrays[name]]) for name in kinds}
    whole |= _parted(ids)
    return Found(whole, {"names": list(names), "placeless": placeless, "problems": problems})


def _run(form: Form, uids: Sequence[int], records: Sequence[Any]) -> _Run:
    ids = [_id(record) for record in records]
    found = _Run(array("q"), array("i"), array("i"), array("q"), [], 0, [], ids if any(ids) else [])
    names: dict[str, int] = {}
    placeless = 0
    for uid, record in zip(uids, records, strict=True):
        if (seen := form.glance(record)) is not None:
            (source, images, key), outside = seen, seen[1] > 0
        else:
            try:
                sample = form.parse(uid, record)
            except ValueError as reason:
                found.problems.append((uid, str(reason)))
                continue
            source, images, outside = sample.source, len(sample.images), needs_folder(sample)
            key = key_of(sample.images, "\n".join(turn.text for turn in sample.turns))
        found.uids.append(uid)
        found.images.append(images)
        found.keys.append(key)
        found.codes.append(names.setdefault(source, len(names)))
        placeless += outside
    return found._replace(names=list(names), placeless=placeless)


def _id(record: Any) -> str:
    """Return a record's own id as it can be written, "" where it has none."""
    value = record.get("id") if isinstance(record, dict) else None
    if value is None or isinstance(value, dict | list):
        return ""
    text = str(value)
    return text if text.isascii() else text.encode(errors="replace").decode()


def _parted(ids: Sequence[pa.StringArray]) -> dict[str, np.ndarray]:
    """Return what ids consist of: where each ends, and their bytes; nothing where none says anything."""
    whole = pa.concat_arrays([pa.array([], pa.string()), *ids])
    _, ends, content = whole.buffers()
    parts = np.frombuffer(ends or b"", np.int32), np.frombuffer(content or b"", np.uint8)
    return dict(zip(("id_ends", "id_bytes"), parts if len(parts[1]) else (part[:0] for part in parts), strict=True))


def _joined(ends: np.ndarray, content: np.ndarray) -> pa.StringArray:
    buffers = map(pa.py_buffer, (ends, content))
    return pa.StringArray.from_buffers(max(0, len(ends) - 1), *buffers)


def needs_folder(sample: Sample) -> bool:
    """Tell whether a sample has an image that does not know where it lies."""
    return not all(isinstance(image, Picture) for image in sample.images)
