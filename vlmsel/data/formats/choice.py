"""A choice from a pool, written: its records in the pool's own form, or what leads to them without copying any."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from vlmsel import runs
from vlmsel.checks import quoted
from vlmsel.data.formats import pool_digest, write_part

Written = Literal["pool", "uids", "weights"]


def write_choice(path: str, pool: str, uids: Sequence[int], total: int, how: Written, about: Any) -> None:
    """Write the records `uids`, the best first, of a pool of `total` records, and what is said `about` them as
    `<path>.manifest.json`, which is there first: a file without it is nobody's, and would not be written again.

    `pool`: the records as a pool of the same form, in its order. `uids`: a JSON list of their positions, the best
    first. `weights`: a JSON list with a number for every record of the pool, 1 for those chosen and 0 for all others.

    Raises:
        ValueError: the name `path` is not one of the pool's form, or, for the two others, does not end in .json.
    """
    if how != "pool" and Path(path).suffix != ".json":
        raise ValueError(f"{path}: --write {how} gives a JSON list; let the name end in .json")
    manifest, chosen = Path(f"{path}.manifest.json"), set(uids)
    runs.write_json(manifest, about)
    try:
        if how == "pool":
            write_part(path, pool, sorted(uids))
        elif how == "uids":
            runs.write_json(Path(path), list(uids))
        else:
            runs.write_text(path, "[" + ", ".join("01"[uid in chosen] for uid in range(total)) + "]\n")
    except (ValueError, OSError):
        manifest.unlink()
        raise


def read_choice(path: str | Path, pool: str | Path, total: int) -> list[int]:
    """Return the uids, in rising order, that `write_choice` wrote as uids or weights for a pool of `total` records.

    The manifest beside the file says which of both it holds, and of which pool; without one its content does.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds neither, or belongs to another pool.
    """
    content, manifest = runs.read_json(path), Path(f"{path}.manifest.json")
    about = runs.read_json(manifest) if manifest.is_file() else {}
    if about.get("pool_sha256") not in (None, pool_digest(pool)):
        raise ValueError(f"{path}: chosen from another pool ({about['pool']}) than {pool}; give the one it was made of")
    if not isinstance(content, list) or not content or not all(_is_number(one) for one in content):
        raise ValueError(
            f"{path}: expected uids or weights, as `vlmsel select --write` gives them: a JSON list of numbers"
        )
    written = about.get("written") or _kind(path, content, total)
    return _weighed(path, content, pool, total) if written == "weights" else _listed(path, content, pool, total)


def refuse_choice(path: str | Path) -> None:
    """Refuse to read as a pool what `write_choice` wrote as uids or weights, by the manifest beside it.

    Raises:
        ValueError: it is such a file; names the mend.
    """
    manifest = Path(f"{path}.manifest.json")
    if not manifest.is_file() or (about := runs.read_json(manifest)).get("written") not in ("uids", "weights"):
        return
    raise ValueError(f"{path}: holds {about['written']}, no records; give the pool ({about['pool']}) and --only {path}")


def _kind(path: str | Path, content: list[Any], total: int) -> Written:
    weights = len(content) == total and set(content) <= {0, 1}
    uids = len(set(content)) == len(content) and set(content) <= set(range(total))
    if weights and uids:  # of one or two records
        raise ValueError(f"{path}: could be uids or weights; leave the manifest of `vlmsel select` beside it")
    return "weights" if weights or (len(content) == total and not uids) else "uids"


def _weighed(path: str | Path, weights: list[Any], pool: str | Path, total: int) -> list[int]:
    if len(weights) != total:
        raise ValueError(f"{path}: {len(weights)} weights for the {total} records of {pool}; give one for each")
    for uid, weight in enumerate(weights):
        if weight not in (0, 1):
            raise ValueError(f"{path}: sample {uid} has weight {weight}; only 1, train on it, and 0, do not, are read")
    return [uid for uid, weight in enumerate(weights) if weight]


def _listed(path: str | Path, uids: list[Any], pool: str | Path, total: int) -> list[int]:
    for uid in uids:
        if not isinstance(uid, int) or not 0 <= uid < total:
            raise ValueError(f"{path}: {quoted(uid)} is no uid of {pool}, whose {total} records have 0 to {total - 1}")
    if len(set(uids)) < len(uids):
        raise ValueError(
            f"{path}: sample {Counter(uids).most_common(1)[0][0]} is listed more than once; list each once"
        )
    return sorted(uids)


def _is_number(one: Any) -> bool:
    return isinstance(one, int | float) and not isinstance(one, bool)
