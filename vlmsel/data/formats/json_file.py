"""JSON lists and JSON lines of records, as LLaVA, ShareGPT, TRL and Alpaca pools come; the content tells which of both.

Only where each record begins is kept in memory, 16 bytes for each; it is read when it is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from vlmsel.data.formats.base import Form
from vlmsel.data.formats.glance import Seen, glance
from vlmsel.data.formats.json_index import JsonRecords, index
from vlmsel.data.formats.records import parse_record
from vlmsel.data.sample import Sample
from vlmsel.runs import atomic_path

_TABLE, _PACKED = "write the table as one of them, with turns in its records", "unpack it"
_MENDS = {".csv": _TABLE, ".tsv": _TABLE, **dict.fromkeys((".gz", ".bz2", ".xz", ".zst", ".zip", ".tar"), _PACKED)}


class JsonFile(Form):
    """JSON and JSON lines; takes every file that no other form claims."""

    name = "JSON"

    def claims(self, path: Path) -> bool:
        return True

    def fits(self, path: Path) -> bool:
        return path.suffix not in (".parquet", ".yaml", ".yml") and not path.is_dir()

    def read(self, path: Path) -> Sequence[Any]:
        if path.is_file() and (mend := _MENDS.get(path.suffix)):
            raise ValueError(f"{path}: a pool is JSON, JSON lines, parquet or of `datasets`; {mend}")
        return JsonRecords(path, *index(path))

    def write(self, path: Path, records: Iterable[Any]) -> None:
        write_json_lines(path, records) if path.suffix == ".jsonl" else _write_list(path, records)

    def parse(self, uid: int, record: Any) -> Sample:
        return parse_record(uid, record)

    def glance(self, record: Any) -> Seen | None:
        return glance(record)


def write_json_lines(path: Path, records: Iterable[Any]) -> None:
    """Write a record per line, atomically and without holding them all."""
    with atomic_path(path) as part, open(part, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def _write_list(path: Path, records: Iterable[Any]) -> None:
    """Write what json.dumps(records, indent=1) gives, record by record."""
    between = chain(["[\n "], iter(lambda: ",\n ", None))
    with atomic_path(path) as part, open(part, "w", encoding="utf-8") as file:
        some = False
        for mark, record in zip(between, records, strict=False):
            some = True
            file.write(mark + json.dumps(record, indent=1).replace("\n", "\n "))
        file.write("\n]\n" if some else "[]\n")
