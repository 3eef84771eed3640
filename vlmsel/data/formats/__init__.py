"""Pools of any form: the first of `FORMS` that claims a file reads its records, parses them and writes them back.

A record that cannot be used does not stop a run: it becomes a `Problem` with a reason, and every other sample keeps its
uid, the position in the file. A new form is a module with a `Form` and one line here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmsel.data.formats.base import Form
from vlmsel.data.formats.llava import Llava
from vlmsel.data.sample import Problem, Sample

FORMS: list[Form] = [
    Llava(),  # the last, as it claims every file
]


@dataclass(frozen=True)
class Pool:
    """What a file holds: usable samples, one problem per unusable one, and all records as they were read."""

    samples: list[Sample]
    problems: list[Problem]
    records: list[Any]


def form_of(path: str | Path) -> Form:
    """Return the form of a file, by its name."""
    return next(form for form in FORMS if form.claims(Path(path)))


def read_samples(path: str | Path) -> Pool:
    """Read a pool; `samples` and `problems` are in the order of the file and together cover it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file as a whole cannot be read.
    """
    form, records = form_of(path), read_records(path)
    samples, problems = [], []
    for uid, record in enumerate(records):
        try:
            samples.append(form.parse(uid, record))
        except ValueError as reason:
            problems.append(Problem(uid, str(reason)))
    return Pool(samples, problems, records)


def read_records(path: str | Path) -> list[Any]:
    """Read the records of a pool, unchecked; the position of a record is its uid.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file as a whole cannot be read.
    """
    return form_of(path).read(Path(path))


def write_records(path: str | Path, records: Iterable[Any], pool: str | Path | None = None) -> None:
    """Write records, those of the file `pool` if it is given; a killed process leaves the old file or the new one.

    Raises:
        ValueError: `path` is of another form than `pool`.
    """
    form = form_of(path)
    if pool is not None and form is not form_of(pool):
        raise ValueError(f"{path}: {pool} is {form_of(pool).name} and this name {form.name}; let it end as the pool's")
    form.write(Path(path), records)
