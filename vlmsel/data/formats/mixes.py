"""Mixes: files that name other files of records, and how much of each is taken.

    InternVL     {"name": {"root": image folder, "annotation": file, "repeat_time": r, ...}, ...} in JSON;
                 r < 1 takes the first part of the file, a whole number repeats it
    LLaVA-NeXT   datasets: [{json_path: file, sampling_strategy: all | first:N | end:N | random:N}, ...] in YAML;
                 N is a number of records or a share, 10%

Files are looked for beside the mix first, then where the command runs. What InternVL's roots name needs no image
folder; LLaVA-NeXT's images lie in the image folder. A record's source is the name of its part unless it says another.
What differs from LLaVA-NeXT: `random` draws the same records each time, from the part's name, and leaves them in order.

A choice is a mix of the same form that names files of the chosen records beside it, `<choice>.<number>.jsonl`, all of
which are taken once.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np

from vlmsel import runs
from vlmsel.data.formats.base import Form, path_problem
from vlmsel.data.formats.json_file import write_json_lines
from vlmsel.data.formats.json_index import JsonRecords, index
from vlmsel.data.formats.pictures import InFolder
from vlmsel.data.formats.records import parse_record, path_of
from vlmsel.data.sample import Sample

LARGEST = 1 << 24  # bytes of a mix's own file


@dataclass(frozen=True)
class Part:
    """One file of a mix: its name, where it lies, what the mix says of it, and where its images lie."""

    name: str
    file: Path
    entry: dict[str, Any]
    root: Path | None = None


class Record(dict[str, Any]):
    """A record that knows which part of a mix it comes from."""

    part: Part

    def picture(self, number: int, image: Any) -> str:
        """Name an image of this record."""
        path = path_of(number, image)
        if self.part.root is None:
            return path
        if problem := path_problem(path):
            raise ValueError(problem)
        return InFolder.of(self.part.root, path)


class MixRecords(Sequence[Any]):
    """The records of a mix, part after part; `rows` are those taken of each."""

    def __init__(self, parts: Sequence[Part], rows: Sequence[np.ndarray], records: Sequence[JsonRecords]) -> None:
        self.parts, self.rows, self.records = parts, rows, records

    @cached_property
    def ends(self) -> np.ndarray:
        """The uid after the last of each part."""
        return np.cumsum([len(rows) for rows in self.rows])

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    @overload
    def __getitem__(self, uid: int) -> Any: ...
    @overload
    def __getitem__(self, uid: slice) -> list[Any]: ...
    def __getitem__(self, uid: int | slice) -> Any:
        if isinstance(uid, slice):
            return [self[one] for one in range(*uid.indices(len(self)))]
        number = self.part_of(uid)
        found = self.records[number][int(self.rows[number][uid - self.ends[number]])]
        if not isinstance(found, dict):
            return found
        record = Record(found)
        record.part = self.parts[number]
        return record

    def part_of(self, uid: int) -> int:
        """Return the number of the part that a record comes from."""
        if not 0 <= uid < len(self):
            raise IndexError(uid)
        return int(np.searchsorted(self.ends, uid, side="right"))


class Mix(Form):
    """What both kinds of mixes share."""

    endings: tuple[str, ...]

    @abstractmethod
    def parts(self, path: Path) -> list[Part]:
        """Read the mix's own file."""

    @abstractmethod
    def rows(self, part: Part, count: int) -> np.ndarray:
        """Return which of a part's `count` records are taken, in order.

        Raises:
            ValueError: the mix does not say so in a way that is known.
        """

    @abstractmethod
    def text(self, parts: Sequence[Part]) -> str:
        """Return the text of a mix of parts, each of which is taken once."""

    def fits(self, path: Path) -> bool:
        return path.suffix in self.endings

    def read(self, path: Path) -> MixRecords:
        parts = self.parts(path)
        records, rows = [], []
        for part in parts:
            try:
                records.append(JsonRecords(part.file, *index(part.file)))
                rows.append(self.rows(part, len(records[-1])))
            except (ValueError, FileNotFoundError) as problem:
                raise type(problem)(f"{path}: {part.name}: {problem}") from None
        return MixRecords(parts, rows, records)

    def parse(self, uid: int, record: Any) -> Sample:
        if not isinstance(record, Record):
            return parse_record(uid, record)
        return parse_record(uid, {"source": record.part.name, **record}, record.picture)

    def write(self, path: Path, records: Iterable[Any]) -> None:
        raise ValueError(f"{path}: records of {self.name} are written by the mix that they come from")

    def write_part(self, path: Path, pool: Path, uids: Sequence[int]) -> None:
        records = self.read(pool)
        taken: dict[int, list[int]] = {}
        for uid in uids:
            taken.setdefault(records.part_of(uid), []).append(uid)
        parts = []
        for number, own in sorted(taken.items()):
            file = Path(f"{path.absolute()}.{number}.jsonl")
            write_json_lines(file, (records[uid] for uid in own))
            part = records.parts[number]
            parts.append(
                Part(part.name, file, part.entry | ({"length": len(own)} if "length" in part.entry else {}), part.root)
            )
        runs.write_text(path, self.text(parts))  # last: it names the others

    def digest(self, path: Path) -> str:
        files = [path, *(part.file for part in self.parts(path))]
        return hashlib.sha256("\n".join(map(runs.file_hash, files)).encode()).hexdigest()


def found_beside(path: Path, name: str) -> Path:
    """Return the file or folder that a mix names, absolute: beside the mix, else where the command runs."""
    beside = path.absolute().parent / name
    return beside if beside.exists() else Path(name).absolute()
