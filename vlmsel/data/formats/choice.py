"""A choice from a pool, written: its records in the pool's own form, or what leads to them without copying any."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from vlmsel import runs
from vlmsel.data.formats import write_part

Written = Literal["pool", "uids", "weights"]


def write_choice(path: str, pool: str, uids: Sequence[int], total: int, how: Written) -> None:
    """Write the records `uids`, the best first, of a pool of `total` records.

    `pool`: the records as a pool of the same form, in its order. `uids`: a JSON list of their positions, the best
    first. `weights`: a JSON list with a number for every record of the pool, 1 for those chosen and 0 for all others.

    Raises:
        ValueError: the name `path` is not one of the pool's form, or, for the two others, does not end in .json.
    """
    if how == "pool":
        return write_part(path, pool, sorted(uids))
    if Path(path).suffix != ".json":
        raise ValueError(f"{path}: --write {how} gives a JSON list; let the name end in .json")
    if how == "uids":
        return runs.write_json(Path(path), list(uids))
    chosen = set(uids)
    return runs.write_text(path, "[" + ", ".join("01"[uid in chosen] for uid in range(total)) + "]\n")
