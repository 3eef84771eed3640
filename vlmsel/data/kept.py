"""What is found out about large pools once, by several processes, and kept for the next start.

From `MANY` records on it lies in `$XDG_CACHE_HOME/vlmsel/pools` (or `~/.cache`) under the hash of all that it depends
on, the code that found it among this. Whatever is damaged there is found again.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from vlmsel import processes, progress, runs

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
    if key is None or count < MANY:
        return find()
    path = _folder() / f"{hashlib.sha256(repr((key, count, _code())).encode()).hexdigest()}.npz"
    # one process looks for the file: all must agree on whether it is there
    if (known := processes.gather(_read(path) if processes.is_main() else None)[0]) is None:
        known = find()
        if processes.is_main():
            _keep(path, known)
    return known


def workers(count: int) -> int:
    """Return how many processes look at `count` records, 0 for this one alone."""
    if count < MANY or "fork" not in multiprocessing.get_all_start_methods():
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    each = cores // processes.count()
    return min(16, each) if each > 1 else 0


class _Chunks:
    """Runs of positions, looked at; a data set as torch's loader wants it."""

    def __init__(self, look: Callable[[int], Any], positions: range) -> None:
        self.look, self.positions = look, positions

    def __len__(self) -> int:
        return -(-len(self.positions) // CHUNK)

    def __getitem__(self, number: int) -> tuple[range, list[Any]]:
        own = self.positions[number * CHUNK : (number + 1) * CHUNK]
        return own, [self.look(position) for position in own]


def looked_at(look: Callable[[int], Any], positions: range, what: str) -> Iterator[tuple[range, list[Any]]]:
    """Call `look` for every position, in several processes where there are many; give runs of positions and results.

    What `look` gives must go from one process to another.
    """
    from torch.utils.data import DataLoader

    many = workers(len(positions))
    how: dict[str, Any] = {"multiprocessing_context": "fork", "worker_init_fn": _alone} if many else {}
    chunks: Any = _Chunks(look, positions)
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


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vlmsel" / "pools"


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
