"""Write the part of a pool with the lowest (most helpful) scores, in the format it came in."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np

from vlmsel import runs
from vlmsel.data.formats import read_records, write_records
from vlmsel.scoring.table import read_table, score_columns
from vlmsel.selection import combine_targets, how_many, top


def select(
    scores: str,
    pool: str,
    out: str,
    scorer: str = "HyperINF",
    target: str | list[str] | None = None,
    combine: Literal["rank", "mean"] = "rank",
    fraction: float | None = None,
    count: int | None = None,
    quota: dict[str, float] | None = None,
    config: str = "",
) -> None:
    """Choose samples, lowest influence first, and write them in the pool's own form with a manifest beside them.

    Args:
        scores: the table `scores.parquet` of `vlmsel score`.
        pool: the pool that was scored; refused when it is another.
        out: the file to write, of the pool's form; `<out>.manifest.json` says which samples it holds and why.
        scorer: whose scores decide.
        target: the target that counts, or a list of them; all of them when left out.
        combine: how several targets count: rank lets each choose an equal part, mean averages the scores.
        fraction: part of the pool to choose, in (0, 1].
        count: how many samples to choose, instead of `fraction`.
        quota: greatest share of the choice per source, such as `--quota.text 0.1`.
        config: the resolved configuration as text.
    """
    if Path(out).resolve() in (Path(scores).resolve(), Path(pool).resolve()):
        raise ValueError(f"{out}: --out would replace a file that is read; choose another name")
    table, about = read_table(scores, pool)
    records = read_records(pool)
    columns = score_columns(table, scorer, [target] if isinstance(target, str) else target)
    values = combine_targets(np.stack([table[name] for name in columns]), combine)
    uids = top(table["uid"], values, how_many(len(records), fraction, count), table["source"], quota).tolist()
    write_records(out, [records[uid] for uid in sorted(uids)], pool)
    sources = Counter(table["source"][sorted(uids)].tolist())  # row = uid
    manifest = {
        "config": config,
        "pool": about["pool"],
        "pool_sha256": about["pool_sha256"],
        "scores_sha256": runs.file_hash(scores),
        "columns": columns,
        "combine": combine,
        "of": len(records),
        "sources": dict(sources.most_common()),
        "uids": uids,
    }
    runs.write_json(Path(f"{out}.manifest.json"), manifest)
    shares = ", ".join(f"{source} {number}" for source, number in sources.most_common())
    print(f"{len(uids)} of {len(records)} samples by {', '.join(columns)} (lowest = most helpful): {shares}; {out}")
