"""Rows of Arrow tables as records: parquet and what the library `datasets` keeps, read from the disk when asked for.

`datasets` maps its files into memory; parquet, which cannot be read by the row, it first writes once as Arrow into its
cache (`HF_DATASETS_CACHE`). Pictures whose bytes stand in a row are named `<pool>#<row>.<number>` and read from there
by whichever process wants them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, overload

import pyarrow as pa
import pyarrow.parquet as pq

from vlmsel import runs
from vlmsel.data.formats.pictures import InPool
from vlmsel.data.formats.records import CONVERSATIONS, images_of, path_of
from vlmsel.data.hub import cache_alone, hub_answers

AT_ONCE = 256  # rows brought from Arrow to Python together
SAVED = ("state.json", "dataset_dict.json")
HUB = "train"  # the split that is read of a data set on the hub


class Row(dict[str, Any]):
    """A record that knows which pool it lies in, and where."""

    pool: str
    uid: int

    def picture(self, number: int, image: Any) -> str:
        """Name an image of this record: its path, or what leads to its bytes."""
        if isinstance(image, bytes) or (isinstance(image, dict) and image.get("bytes")):
            return InRow.of(self.pool, self.uid, number, None if isinstance(image, bytes) else image.get("path"))
        return path_of(number, image)


class InRow(InPool):
    """A picture whose bytes stand in a row of a pool."""

    pool: str
    uid: int
    number: int

    @classmethod
    def of(cls, pool: str, uid: int, number: int, path: str | None) -> InRow:
        picture = cls(f"{Path(pool).name}#{uid}.{number}")
        picture.pool, picture.uid, picture.number, picture.named = pool, uid, number, path or ""
        return picture

    def content(self) -> bytes:
        image = images_of(Rows(self.pool)[self.uid])[self.number]
        return image if isinstance(image, bytes) else image["bytes"]


class Rows(Sequence[Any]):
    """The records of a pool that `datasets` reads.

    Args:
        pool: a parquet file, a folder of such, a folder of `save_to_disk`, or a name on the hub.

    Raises:
        ValueError: it cannot be read, or has no columns that hold turns; says which it has.
    """

    def __init__(self, pool: str) -> None:
        self.pool = pool
        self.dataset = opened(pool, _state(pool))

    def __len__(self) -> int:
        return len(self.dataset)

    @overload
    def __getitem__(self, uid: int) -> Row: ...
    @overload
    def __getitem__(self, uid: slice) -> list[Row]: ...
    def __getitem__(self, uid: int | slice) -> Row | list[Row]:
        if isinstance(uid, slice):
            asked = range(*uid.indices(len(self)))
            return self._read(asked.start, len(asked)) if asked.step == 1 else [self[one] for one in asked]
        if not -len(self) <= uid < len(self):
            raise IndexError(uid)
        return self._read(uid % len(self), 1)[0]

    def __iter__(self) -> Iterator[Row]:
        return (row for start in range(0, len(self), AT_ONCE) for row in self._read(start, AT_ONCE))

    def __reduce__(self) -> Any:
        return Rows, (self.pool,)

    def _read(self, start: int, count: int) -> list[Row]:
        rows = [Row(row) for row in self.dataset.data.fast_slice(start, min(count, len(self) - start)).to_pylist()]
        for uid, row in enumerate(rows, start):
            row.pool, row.uid = self.pool, uid
        return rows


def files_of(pool: str | Path) -> list[Path]:
    """Return the parquet files of a pool: itself, or those of a folder; none where it is something else."""
    path = Path(pool)
    if path.suffix == ".parquet":
        return [path]
    return sorted([*path.glob("*.parquet"), *path.glob("data/*.parquet")]) if path.is_dir() else []


def is_saved(path: Path) -> bool:
    """Tell whether a folder is one of `save_to_disk`."""
    return any((path / name).is_file() for name in SAVED)


def _state(pool: str) -> tuple[Any, ...]:
    """Return what changes when a pool's files do."""
    path = Path(pool)
    found = [path / name for name in SAVED if is_saved(path)] or files_of(pool)
    return tuple((str(file), file.stat().st_mtime_ns) for file in found if file.is_file())


@lru_cache(8)
def opened(pool: str, state: tuple[Any, ...]) -> Any:
    """Open a pool once in each process, again when its `state` changed."""
    found = load(pool)
    if not len(found):
        raise ValueError(f"{pool}: no usable sample: it has no rows")
    turns = [*CONVERSATIONS, "instruction and output"]
    if not {*CONVERSATIONS, "instruction"} & set(found.column_names):
        has = ", ".join(name[:60] for name in found.column_names)[:300]
        raise ValueError(f"{pool}: no column that holds turns ({', '.join(turns)}); it has {has or 'none'}")
    return found


def load(pool: str) -> Any:
    """Open a pool with `datasets`."""
    import datasets

    there = True
    with quiet():
        try:
            if is_saved(Path(pool)):
                found = datasets.load_from_disk(pool)
            elif files := files_of(pool):
                found = datasets.Dataset.from_file(str(as_arrow(files)))
            else:
                there = hub_answers()
                with cache_alone(not there):
                    found = datasets.load_dataset(pool, split=HUB)
        except Exception as problem:  # of many kinds: of the network, of file formats, of the hub
            reason = " ".join(f"{type(problem).__name__}: {problem}".split())[:300]
            if Path(pool).exists():
                raise ValueError(f"{pool}: `datasets` cannot read it ({reason})") from None
            if not there:
                reason = "the hub does not answer, and the data set is not in the cache"
            raise FileNotFoundError(
                f"{pool}: no such file, nor a data set that the hub gives ({reason}); mend the path or the name, or "
                "fetch the data set into a folder first"
            ) from None
    if hasattr(found, "keys"):
        raise ValueError(f"{pool}: has several splits; name the folder of one, {pool}/{next(iter(found))}")
    return found


def as_arrow(files: Sequence[Path]) -> Path:
    """Return parquet files as one of Arrow in the cache of `datasets`, whose own reader holds a row group at a time."""
    import datasets
    from datasets.arrow_writer import ArrowWriter

    state = repr([(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files])
    path = Path(datasets.config.HF_DATASETS_CACHE) / "vlmsel" / f"{hashlib.sha256(state.encode()).hexdigest()}.arrow"
    if path.is_file():
        return path
    features = datasets.Features.from_arrow_schema(pq.read_schema(files[0]))
    with runs.atomic_path(path) as part, ArrowWriter(path=str(part), features=features) as writer:
        for file in files:
            with pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20) as source:
                for batch in source.iter_batches(AT_ONCE):
                    writer.write_table(pa.Table.from_batches([batch]))
        writer.finalize()
    return path


@contextmanager
def quiet() -> Iterator[None]:
    """Keep `datasets` from showing bars of its own, and from saying beforehand what it is about to raise."""
    import datasets

    bars, level = datasets.is_progress_bar_enabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if bars:
            datasets.enable_progress_bars()
