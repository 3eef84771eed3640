"""Pools that the library `datasets` reads: parquet, folders of `save_to_disk`, names on the hub.

A choice of parquet is a parquet file, of the others a folder of `save_to_disk`; schema and features are the pool's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vlmsel import runs
from vlmsel.data.formats.arrow_rows import Rows, files_of, is_saved, quiet
from vlmsel.data.formats.base import Form
from vlmsel.data.formats.glance import Seen, glance
from vlmsel.data.formats.records import parse_record
from vlmsel.data.hub import HUB_NAME
from vlmsel.data.sample import Sample

_ENDINGS = (".json", ".jsonl", ".parquet", ".yaml", ".yml", ".csv", ".tsv", ".txt")


class _Arrow(Form):
    """What the forms read by `datasets` share."""

    def read(self, path: Path) -> Sequence[Any]:
        return Rows(str(path))

    def parse(self, uid: int, record: Any) -> Sample:
        return parse_record(uid, record, record.picture)

    def glance(self, record: Any) -> Seen | None:
        return glance(record)

    def write(self, path: Path, records: Iterable[Any]) -> None:
        import datasets

        self._save(path, datasets.Dataset.from_list([dict(record) for record in records]))

    def write_part(self, path: Path, pool: Path, uids: Sequence[int]) -> None:
        self._save(path, Rows(str(pool)).dataset.select(uids))

    def digest(self, path: Path) -> str:
        files = [file for file in sorted(path.rglob("*")) if file.is_file()] if path.is_dir() else [path]
        if not path.exists():
            files = [Path(one["filename"]) for one in Rows(str(path)).dataset.cache_files]
        if files == [path]:
            return runs.file_hash(path)
        parts = (f"{file.name} {runs.file_hash(file)}\n" for file in files)
        return hashlib.sha256("".join(parts).encode()).hexdigest()

    def _save(self, path: Path, found: Any) -> None:
        with quiet(), runs.atomic_folder(path) as part:
            found.save_to_disk(str(part))


class Parquet(_Arrow):
    """A parquet file, or a folder of such."""

    name = "parquet"

    def claims(self, path: Path) -> bool:
        return bool(files_of(path)) and not is_saved(path)

    def fits(self, path: Path) -> bool:
        return path.suffix == ".parquet"

    def _save(self, path: Path, found: Any) -> None:
        with quiet(), runs.atomic_path(path) as part:
            found.to_parquet(str(part))


class Saved(_Arrow):
    """A folder of `save_to_disk`."""

    name = "a folder of `datasets`"

    def claims(self, path: Path) -> bool:
        return is_saved(path)

    def fits(self, path: Path) -> bool:
        return is_saved(path) or not (path.exists() or path.suffix in _ENDINGS)


class Hub(Saved):
    """A data set on the hub, by `owner/name`; its split `train`."""

    name = "a data set of the hub"

    def claims(self, path: Path) -> bool:
        known = path.suffix in _ENDINGS or path.exists() or path.parent.is_dir()
        return not known and HUB_NAME.fullmatch(path.as_posix()) is not None
