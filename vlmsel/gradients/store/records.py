"""What a score table says of a pool's records beside their scores, kept in a gradient store: `records.parquet`.

There is a row per record, row = uid, with `source`, `tokens` and `reason`: why it cannot be used, null when it can. A
million records take a few MB. Samples whose gradients turned out not to be finite are listed, with their losses, in
`left_out/<number>.json` beside the shard of that number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vlmsel import runs
from vlmsel.gradients.store.format import StoreSettings

NAME, LEFT_OUT = "records.parquet", "left_out"
_AGAIN = "run the command that writes the store again"
_KEY = b"store"
_SCHEMA = {"source": pa.string(), "tokens": pa.int64(), "reason": pa.string()}
LeftOut = dict[int, tuple[str, float]]  # uid -> why, and its loss, NaN when that is not finite


@dataclass(frozen=True)
class Records:
    """A pool's records, by uid.

    Attributes:
        sources: where each comes from; "" for one that could not be read.
        tokens: its length, pictures' places included.
        reasons: why those that cannot be used cannot.
    """

    sources: Sequence[str]
    tokens: Sequence[int]
    reasons: Mapping[int, str]

    def __len__(self) -> int:
        return len(self.sources)

    def usable(self) -> list[int]:
        """Return the uids of records without a problem."""
        return [uid for uid in range(len(self)) if uid not in self.reasons]

    def write(self, folder: Path, settings: StoreSettings) -> None:
        """Write them into a store of these settings."""
        columns = {
            "source": self.sources,
            "tokens": self.tokens,
            "reason": [self.reasons.get(uid) for uid in range(len(self))],
        }
        table = pa.table({name: pa.array(column, _SCHEMA[name]) for name, column in columns.items()})
        with runs.atomic_path(folder / NAME) as part:
            pq.write_table(table.replace_schema_metadata({_KEY: settings.digest()}), part)

    @classmethod
    def read(cls, folder: Path, settings: StoreSettings) -> Records:
        """Read them from a store of these settings.

        Raises:
            FileNotFoundError: the store was not written by `vlmsel score`.
            ValueError: the file is damaged or belongs to another store.
        """
        path = folder / NAME
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; write the store with `vlmsel score --store {folder}`")
        try:
            table = pq.read_table(path)
        except (pa.ArrowInvalid, OSError) as problem:
            raise ValueError(f"{path}: damaged ({str(problem).splitlines()[0]}); {_AGAIN}") from None
        if (table.schema.metadata or {}).get(_KEY) != settings.digest().encode():
            raise ValueError(f"{path}: belongs to another gradient store; {_AGAIN}")
        sources, tokens, reasons = (table[name].to_pylist() for name in _SCHEMA)
        return cls(sources, tokens, {uid: reason for uid, reason in enumerate(reasons) if reason is not None})


def write_left_out(folder: Path, number: int, found: LeftOut) -> None:
    """List the samples that a shard lacks; no file when there are none."""
    path = folder / LEFT_OUT / f"{number:08d}.json"
    if found:
        runs.write_json(path, [[uid, why, loss if math.isfinite(loss) else None] for uid, (why, loss) in found.items()])
    else:
        path.unlink(missing_ok=True)


def read_left_out(folder: Path) -> LeftOut:
    """Return the samples that the shards lack."""
    rows = [row for path in sorted((folder / LEFT_OUT).glob("*.json")) for row in runs.read_json(path)]
    return {uid: (why, float("nan") if loss is None else loss) for uid, why, loss in rows}
