"""Pools of any form: the first of `FORMS` that claims a file reads its records, parses them and writes them back.

A record that cannot be used does not stop a run: it becomes a `Problem` with a reason, and every other sample keeps its
uid, the position in the file. A new form is a module with a `Form` and one line here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vlmsel.data.formats.arrow_files import Hub, Parquet, Saved
from vlmsel.data.formats.base import Form
from vlmsel.data.formats.coco import Coco
from vlmsel.data.formats.internvl import InternVL
from vlmsel.data.formats.json_file import JsonFile
from vlmsel.data.formats.llava_next import LlavaNext
from vlmsel.data.formats.pool import Pool, read_pool

FORMS: list[Form] = [
    Saved(),
    Parquet(),
    InternVL(),
    Coco(),
    LlavaNext(),
    Hub(),
    JsonFile(),  # the last, as it claims every file
]


def form_of(path: str | Path) -> Form:
    """Return the form of a pool, by its name and content."""
    return next(form for form in FORMS if form.claims(Path(path)))


def read_samples(path: str | Path) -> Pool:
    """Read a pool; `samples` and `problems` are in the order of the file and together cover it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file as a whole cannot be read.
    """
    return read_pool(form_of(path), Path(path))


def read_records(path: str | Path) -> Sequence[Any]:
    """Read the records of a pool, unchecked; the position of a record is its uid.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file as a whole cannot be read.
    """
    return form_of(path).read(Path(path))


def pool_digest(path: str | Path) -> str:
    """Return a hash of all that a pool's records are read from."""
    return form_of(path).digest(Path(path))


def write_records(path: str | Path, records: Iterable[Any], pool: str | Path | None = None) -> None:
    """Write records, those of the file `pool` if it is given; a killed process leaves the old file or the new one.

    Raises:
        ValueError: `path` is of another form than `pool`.
    """
    form = form_of(path) if pool is None else _form_to_write(path, pool)
    form.write(Path(path), records)


def write_part(path: str | Path, pool: str | Path, uids: Sequence[int]) -> None:
    """Write the records `uids` of a pool, in this order and in the pool's form.

    Raises:
        ValueError: the name `path` is not one of the pool's form.
    """
    _form_to_write(path, pool).write_part(Path(path), Path(pool), uids)


def _form_to_write(path: str | Path, pool: str | Path) -> Form:
    form, named = form_of(pool), form_of(path)
    if not form.fits(Path(path)) or (named is not form and named not in FORMS[-1:]):
        raise ValueError(f"{path}: {pool} is {form.name} and this name {named.name}; let it end as the pool's")
    return form
