"""The score table of a pool that was scored: one row per record of its file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vlmsel import runs
from vlmsel.data.dataset import SampleDataset
from vlmsel.data.formats.pool import Samples
from vlmsel.scoring.affinity import Columns, write_affinities
from vlmsel.scoring.pool_pass import PoolAffinities, Scored
from vlmsel.scoring.table import write_table


@dataclass(frozen=True)
class Records:
    """What the table says of a pool's records beside their scores, by uid.

    Attributes:
        sources: where each comes from; "" for one that could not be read.
        tokens: its length, pictures' places included.
        reasons: why those that cannot be used cannot.
        supervised: how many of its tokens its loss is taken on; None in stores of earlier versions.
        ids: the records' own, "" for one without; None where no record has one.
    """

    sources: Sequence[str]
    tokens: Sequence[int] | np.ndarray
    reasons: Mapping[int, str]
    supervised: Sequence[int] | np.ndarray | None = None
    ids: Sequence[str] | pa.StringArray | None = None

    def __len__(self) -> int:
        return len(self.sources)

    def usable(self) -> list[int]:
        """Return the uids of records without a problem."""
        return [uid for uid in range(len(self)) if uid not in self.reasons]

    def to_json(self) -> dict[str, Any]:
        """Return them as they are read back."""
        reasons = {str(uid): why for uid, why in self.reasons.items()}
        known = {"sources": list(self.sources), "tokens": np.asarray(self.tokens).tolist(), "reasons": reasons}
        more = {"supervised": self.supervised, "ids": self.ids}
        return known | {name: np.asarray(values).tolist() for name, values in more.items() if values is not None}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Records:
        """Read them back."""
        reasons = {int(uid): why for uid, why in content["reasons"].items()}
        return cls(content["sources"], content["tokens"], reasons, content.get("supervised"), content.get("ids"))


def write_scores(path: str | Path, records: Records, scored: Scored, about: Mapping[str, Any]) -> None:
    """Write the scores of a pool: one row per record of its file, with nulls for a sample without a score.

    `about` says what the table was made from: `pool` and `pool_sha256` at least, JSON-able.
    """
    uids = scored.uids.numpy()

    def column(values: Any) -> np.ndarray:
        whole = np.full(len(records), np.nan)
        whole[uids] = values.numpy()
        return whole

    columns: dict[str, Any] = {"uid": np.arange(len(records))}
    if records.ids is not None:
        columns["id"] = records.ids
    columns |= {"source": records.sources, "tokens": records.tokens}
    if records.supervised is not None:
        columns["supervised"] = records.supervised
    columns["loss"] = column(scored.losses)
    columns |= {f"{s}/{t}": column(one) for (s, t), one in zip(scored.names, scored.scores, strict=True)}
    write_table(path, columns, {**about, "environment": runs.environment(), "details": scored.details})


def write_pool_affinities(
    path: str | Path, found: PoolAffinities, about: Mapping[str, Any], dtype: str = "float32"
) -> None:
    """Write what every target sample says of every sample, C in `dtype`, float32 or float16; `about` as for
    `write_scores`."""
    order = found.uids.argsort()
    scorers = {}
    for name, own in found.of.items():
        norm = "plain gradients" if own.inner is None else "the scorer's own metric"
        inner = None if own.inner is None else own.inner.numpy()
        columns, norms = own.columns[order].numpy().astype(dtype), own.norms[order].numpy()
        mixing, target_norms = own.virtual.mixing.numpy(), own.target_norms.numpy()
        scorers[name] = Columns(columns, mixing, norms, target_norms, own.virtual.share, norm, inner)
    targets = [sample._asdict() for sample in found.targets]
    write_affinities(path, found.uids[order].numpy(), targets, scorers, about)


def records_of(data: SampleDataset, problems: Mapping[int, str], total: int) -> Records:
    """Return what the table says of the `total` records of a file: the samples that could be read, and, by uid, why
    others cannot be used."""
    uids, sources, sizes = data.uids, [""] * total, np.zeros((total, 2), np.int64)
    for uid, source in zip(uids, data.sources, strict=True):
        sources[uid] = source
    sizes[uids] = data.sizes()
    ids = data.samples.ids if isinstance(data.samples, Samples) and len(data.samples.ids) else None
    return Records(sources, sizes[:, 0], problems, sizes[:, 1], ids)
