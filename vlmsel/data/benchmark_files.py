"""What the readers of text benchmarks share: lines, and errors that speak for a whole file.

A damaged file is refused as a whole, so that no metric is taken over fewer examples than it was asked for. The error
names the first record that is wrong and, when there are more, how many of how many are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

Record = TypeVar("Record")
Parsed = TypeVar("Parsed")


def read_lines(path: str | Path) -> list[str]:
    """Read the lines of a UTF-8 file, with or without a byte order mark, without the empty lines at its end.

    Lines end at line feeds alone (and a carriage return before one): sentences may hold U+2028 and its kin.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty or not UTF-8.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise ValueError(f"{path}: not a text file in UTF-8 ({problem}); take the benchmark's official file") from None
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise ValueError(f"{path}: the file is empty; take the benchmark's official file")
    return lines


def parse_all(
    path: Path, records: Sequence[tuple[str, Record]], parse: Callable[[int, Record], Parsed], noun: str
) -> list[Parsed]:
    """Parse each record of a file, given with its place; `parse` gets the running number, from 0, and the record.

    Raises:
        ValueError: `parse` raised it for a record; the message is one for all of them.
    """
    parsed, wrong = [], []
    for number, (place, record) in enumerate(records):
        try:
            parsed.append(parse(number, record))
        except ValueError as reason:
            wrong.append(f"{place}: {reason}")
    refuse(path, wrong, len(records), noun)
    return parsed


def refuse(path: Path, wrong: Sequence[str], total: int, noun: str) -> None:
    """Raise one ValueError for what is wrong with `wrong` of a file's `total` records; nothing if nothing is."""
    if wrong:
        more = f" ({len(wrong)} of {total} {noun}s cannot be used, this is the first)" if len(wrong) > 1 else ""
        raise ValueError(f"{path}: {wrong[0]}{more}")


def check_whole(path: Path, ids: Sequence[str], labels: Sequence[int | None], noun: str) -> None:
    """Check that a file's ids differ and that all of its records have a label or none has.

    Raises:
        ValueError: names the first id that comes again, or the first record without a label, with counts.
    """
    twice = [name for name, count in Counter(ids).items() if count > 1]
    if twice:
        count = f" ({len(twice)} ids are used again, this is the first)" if len(twice) > 1 else ""
        raise ValueError(f"{path}: {noun} {twice[0]} occurs more than once; take one of the two out{count}")
    bare = [name for name, label in zip(ids, labels, strict=True) if label is None]
    if bare and len(bare) < len(ids):
        raise ValueError(
            f"{path}: {len(bare)} of {len(ids)} {noun}s have no label, the first: {noun} {bare[0]}; "
            "label all of them or none"
        )
