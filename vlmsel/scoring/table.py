"""The score table: `scores.parquet` with `uid, id, source, tokens, supervised, loss` and `<Scorer>/<target>` columns.

There is a row for every record of the pool, in the pool's order: row = uid. Scores are influences: lowest = most
helpful, highest = most harmful. A sample that could not be scored has a null in every score column, one that could not
even be read has "" for its source. `id` is the record's own, where records have one, and no key. The table's metadata
hold the configuration, the versions and the pool's SHA-256, so that a table can only be used with the pool it was made
from; `scores.json` beside it holds them too, for tables that other programs saved again, as parquet or CSV.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from vlmsel import runs
from vlmsel.data.formats import pool_digest

_KEY, ABOUT = b"vlmsel", "scores.json"
FIXED = ("uid", "source", "tokens", "loss")
KNOWN = ("uid", "id", "source", "tokens", "supervised", "loss")  # tables of earlier versions lack id and supervised
# all others are float64
_TYPES = {
    "uid": pa.int64(),
    "id": pa.string(),
    "source": pa.string(),
    "tokens": pa.int64(),
    "supervised": pa.int64(),
}


def check_target_names(files: Mapping[str, str]) -> Mapping[str, str]:
    """Return the targets' files by name.

    Raises:
        ValueError: there is none, or a name cannot be part of a column.
    """
    if not files:
        raise ValueError("no target set; give at least one, such as --targets.vqav2 FILE")
    for name in files:
        if "/" in name or name.startswith("#") or not name:
            raise ValueError(f"target {name!r}: this name cannot be part of a column; choose another, without / and #")
    return files


def write_table(path: str | Path, columns: Mapping[str, Sequence[Any]], about: Mapping[str, Any]) -> None:
    """Write the table, and its metadata beside it; `columns` must hold uid, source, tokens, loss. NaN becomes null."""
    assert set(FIXED) <= set(columns)
    arrays = {
        name: pa.array(values, _TYPES.get(name, pa.float64()), from_pandas=True) for name, values in columns.items()
    }
    table = pa.table(arrays).replace_schema_metadata({_KEY: json.dumps(dict(about))})
    with runs.atomic_path(path) as part, open(part, "wb") as file:  # arrow takes a path such as exp:1/x for an address
        pq.write_table(table, file)
    runs.write_json(Path(path).with_name(ABOUT), {**about, "records": len(table)})


def read_table(path: str | Path, pool: str | Path | None = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read a score table as columns (null scores as NaN) and its metadata; `pool` is the pool that it must belong to.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a score table, or made from another pool.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such score table; `vlmsel score` writes it as scores.parquet")
    table = _read(Path(path))
    about = json.loads((table.schema.metadata or {}).get(_KEY, b"null"))
    if not set(FIXED) <= set(table.column_names):
        raise ValueError(f"{path}: not a score table (it needs the columns {', '.join(FIXED)})")
    if about is None:
        table, about = _saved_again(Path(path), table)
    if pool is not None and about["pool_sha256"] != _digest(pool, about["pool"]):
        raise ValueError(
            f"{path}: these scores belong to another pool ({about['pool']}) than {pool}; score this pool first"
        )
    return {name: table[name].to_numpy() for name in table.column_names}, about


def _read(path: Path) -> pa.Table:
    kind = "CSV" if path.suffix == ".csv" else "parquet"
    try:
        with open(path, "rb") as file:
            if kind == "parquet":
                return pq.read_table(file)
            return pa.csv.read_csv(file, convert_options=pa.csv.ConvertOptions(column_types=_TYPES))
    except (pa.ArrowInvalid, OSError) as problem:
        raise ValueError(f"{path}: not a {kind} file ({str(problem).splitlines()[0]})") from None


def _saved_again(path: Path, table: pa.Table) -> tuple[pa.Table, dict[str, Any]]:
    """Bring a table that another program saved into the order of the pool; return it with the metadata beside it.

    Columns that are neither scores nor known, such as an index, are dropped.

    Raises:
        ValueError: there are none, or the rows are not those of the records.
    """
    beside = path.with_name(ABOUT)
    if not beside.is_file():
        raise ValueError(
            f"{path}: has none of vlmsel's metadata, nor is {ABOUT} beside it; leave the table in its run folder"
        )
    about = runs.read_json(beside)
    total, uids = about.pop("records"), table["uid"].to_numpy()
    if len(uids) != total or (np.sort(uids) != np.arange(total)).any():
        raise ValueError(
            f"{path}: {len(uids)} rows, and the pool has {total} records; keep one row of each, with no scores for "
            "those that are not to be chosen"
        )
    table = table.take(pa.array(np.argsort(uids)))
    kept = [name for name in table.column_names if name in KNOWN or "/" in name]
    return pa.table({name: table[name].cast(_TYPES.get(name, pa.float64())) for name in kept}), about


def _digest(pool: str | Path, scored: str) -> str:
    try:
        return pool_digest(pool)
    except FileNotFoundError:
        raise FileNotFoundError(f"{pool}: no such file; give the pool that was scored ({scored})") from None


def score_columns(columns: Mapping[str, Any], scorer: str, targets: Sequence[str] | None = None) -> list[str]:
    """Return the names of a scorer's columns: all its targets, or those asked for.

    Raises:
        ValueError: the table lacks one of them; says what it has.
    """
    names = [name for name in columns if name not in KNOWN]
    if targets is None:
        wanted = [name for name in names if name.rpartition("/")[0] == scorer]
    else:
        wanted = [f"{scorer}/{target}" for target in targets]
    lacking = [name for name in wanted if name not in names]
    if lacking or not wanted:
        raise ValueError(f"no scores named {(lacking or [scorer])[0]!r} in the table; it has {', '.join(names)}")
    return wanted
