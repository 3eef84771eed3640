"""What is found out about large pools once, by several processes, and kept for the next start.

From `MANY` records on it lies in `$XDG_CACHE_HOME/vlmsel/pools` (or `~/.cache`) under the hash of all that it depends
on, the code that found it among this. Whatever is damaged there is found again.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from zipfile import BadZipFile

import numpy as np

from vlmsel import processes, progress, runs

T = TypeVar("T")
MANY = 20_000
CHUNK = 256


class Found(NamedTuple):
    """Arrays by name, and what can be written as JSON."""

    arrays: dict[str, np.ndarray]
    about: Any


def kept(count: int, key: Any, find: Callable[[], Found]) -> Found:
    """Return what `find` gives for `count` records, or what it gave when it was called with an equal key.

    Args:
        count: how many records there are.
        key: what the result depends on beside the code, as something whose `repr` says it; None: find it anew.
        find: finds it; several processes of a run call it together or not at all.
    """
    if key is None or not large(count):
        return find()
    # one process looks for the file: all must agree on whether it is there
    if (known := processes.gather(recalled(count, key) if processes.is_main() else None)[0]) is None:
        known = find()
        if processes.is_main():
            _keep(_path(count, key), known)
    return known


def recalled(count: int, key: Any) -> Found | None:
    """Return what is kept of a call of `kept` with an equal key, None where there is nothing."""
    return None if key is None or not large(count) else _read(_path(count, key))


def large(count: int) -> bool:
    """Tell whether so many records are looked at by several processes, once."""
    return count >= MANY


def workers(count: int, least: int | None = None) -> int:
    """Return how many processes look at `count` records, 0 for this one alone; `least` are worth starting some."""
    if count < (MANY if least is None else least) or "fork" not in multiprocessing.get_all_start_methods():
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    each = cores // processes.count()
    return min(16, each) if each > 1 else 0


class _Chunks:
    """Runs of positions, looked at; a data set as torch's loader wants it."""

    def __init__(self, look: Callable[[Sequence[int]], Any], positions: Sequence[int], size: int) -> None:
        self.look, self.positions, self.size = look, positions, size

    def __len__(self) -> int:
        return -(-len(self.positions) // self.size)

    def __getitem__(self, number: int) -> tuple[Sequence[int], Any]:
        own = self.positions[number * self.size : (number + 1) * self.size]
        return own, self.look(own)


def looked_at(
    look: Callable[[Sequence[int]], T], positions: Sequence[int], what: str | None, least: int | None = None
) -> Generator[tuple[Sequence[int], T], None, None]:
    """Call `look` for runs of positions, in several processes where there are many; give each run and what it gave.

    Args:
        look: what it gives must go from one process to another.
        positions: all of them.
        what: the text of the progress bar; None shows none.
        least: how many are worth starting processes for; `MANY` when left out.
    """
    from torch.utils.data import DataLoader

    many = workers(len(positions), least)
    how: dict[str, Any] = {"multiprocessing_context": "fork", "worker_init_fn": _alone} if many else {}
    chunks: Any = _Chunks(look, positions, max(1, min(CHUNK, -(-len(positions) // max(1, many)))))
    loader = DataLoader(chunks, batch_size=None, num_workers=many, collate_fn=_as_they_are, **how)
    with progress.bar(what, len(positions), "sample") as bar:
        for own, results in loader:
            yield own, results
            bar.update(len(own))


def _as_they_are(looks: Any) -> Any:
    return looks


def _alone(number: int) -> None:
    """Keep a worker from starting threads of its own: tokenizers and torch may hang in them after a fork."""
    import torch

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)


def _path(count: int, key: Any) -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vlmsel" / "pools"
    return folder / f"{hashlib.sha256(repr((key, count, _code())).encode()).hexdigest()}.npz"


@cache
def _code() -> str:
    """Return the hash of all code that reads and encodes samples."""
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return hashlib.sha256("".join(map(runs.file_hash, files)).encode()).hexdigest()


def _read(path: Path) -> Found | None:
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
        return Found(arrays, json.loads(arrays.pop("about").tobytes()))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):  # missing or damaged
        return None


def _keep(path: Path, known: Found) -> None:
    arrays: Mapping[str, Any] = {**known.arrays, "about": np.frombuffer(json.dumps(known.about).encode(), np.uint8)}
    try:
        with runs.atomic_path(path) as part, open(part, "wb") as file:
            np.savez(file, **arrays)
    except OSError as problem:
        print(f"{path}: cannot be kept, so that the pool is looked at again at the next start ({problem})")
