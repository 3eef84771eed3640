"""Rows of files that others made, each with its place in the file: JSON lists, JSON lines, CSV, TSV.

A row that cannot be read is an `Unread` in its place, so that it shifts no other. Who leaves such rows out says so;
benchmarks refuse the file instead (`parse_all`, `check_whole`), so that no metric is taken over fewer examples than it
was asked for: the error names the first row that is wrong and, when there are more, how many of how many are.

Lines end at line feeds alone (and a carriage return before one): sentences may hold U+2028 and its kin. CSV follows the
usual quoting rules. In GLUE's TSV a quotation mark is a character like any other, as in csv.QUOTE_NONE: with the usual
rules a sentence that opens one swallows the rows after it. Other TSV is read by the rules that fit all of its rows.
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from vlmsel import runs
from vlmsel.checks import quoted

Row = TypeVar("Row")
Parsed = TypeVar("Parsed")
Rows = Iterable[tuple[str, Any]]  # place in the file -> the row, or an `Unread`
Cells = tuple[int, list[str]]  # line in the file -> the row
SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")
_OPENED = re.compile(r'"(?:[^"]|"")*')  # a cell that goes on in the next line
_DOUBLED = re.compile(r'"(?:[^"]|"")*""(?:[^"]|"")*"')  # a cell that had to be quoted
_KINDS = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}


@dataclass(frozen=True)
class Unread:
    """Stands for a row that cannot be read, and says why."""

    reason: str


def readable(row: Any) -> Any:
    """Return a row.

    Raises:
        ValueError: it could not be read.
    """
    if isinstance(row, Unread):
        raise ValueError(row.reason)
    return row


def kind_of(content: Any) -> str:
    """Name the kind of a JSON value, as in "expected a list, got an object"."""
    return _KINDS.get(type(content), "a number")


def read_text(path: str | Path) -> str:
    """Read a UTF-8 file, with or without a byte order mark, that is not empty.

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
        raise ValueError(f"{path}: not a text file in UTF-8 ({problem})") from None
    if not text.strip("\r\n"):
        raise ValueError(f"{path}: the file is empty")
    return text


def read_lines(path: str | Path) -> list[str]:
    """Read the lines of a file without the empty ones at its end; raises what `read_text` raises."""
    lines = [line.removesuffix("\r") for line in read_text(path).split("\n")]
    while not lines[-1]:
        lines.pop()
    return lines


def json_rows(path: str | Path) -> Rows:
    """Read the records of a JSON list or of JSON lines, blank ones left out; the content tells which, not the name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, not UTF-8, or one JSON value over several lines that is no list.
    """
    text = read_text(path)
    content = _parsed(text, "a JSON file")
    if not text.lstrip().startswith("[") and (isinstance(content, Unread) or "\n" not in text.strip()):
        return ((f"line {at}", _parsed(line)) for at, line in enumerate(text.split("\n"), 1) if line.strip())
    if isinstance(content, Unread):
        raise ValueError(f"{path}: {content.reason}")
    if not isinstance(content, list):
        raise ValueError(f"{path}: expected a list of records, got {kind_of(content)}")
    return ((f"record {at} of {len(content)}", record) for at, record in enumerate(content, 1))


def _parsed(text: str, what: str = "JSON") -> Any:
    try:
        return json.loads(text)
    except ValueError as problem:
        return Unread(f"not {what} ({problem})")
    except RecursionError:
        return Unread(f"not {what} (nested too deeply)")


def table_rows(path: str | Path, names: Sequence[str] | None = None) -> tuple[Sequence[str], Rows]:
    """Read CSV, where the file's name ends so, or else TSV without quoting: the columns' names, rows as dictionaries.

    `names` are the columns' of a file whose first line does not name them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty or not UTF-8; or, with the rows, a quotation mark is not closed.
    """
    return _table(_quoted(path) if Path(path).suffix.lower() == ".csv" else iter(_bare(path)), names)


def _table(cells: Iterator[Cells], names: Sequence[str] | None = None) -> tuple[Sequence[str], Rows]:
    names = next(cells)[1] if names is None else names
    return names, ((f"line {at}", _cells(names, row)) for at, row in cells)


def _cells(names: Sequence[str], row: Sequence[str]) -> dict[str, str] | Unread:
    if len(row) != len(names):
        return Unread(f"{len(row)} columns, {len(names)} expected")
    return dict(zip(names, row, strict=True))


def _bare(path: str | Path) -> list[Cells]:
    return [(at, line.split("\t")) for at, line in enumerate(read_lines(path), 1)]


def _quoted(path: str | Path, delimiter: str = ",") -> Iterator[Cells]:
    reader = csv.reader((f"{line}\n" for line in read_lines(path)), strict=True, delimiter=delimiter)
    line = 1
    try:
        for row in reader:
            yield line, row
            line = reader.line_num + 1
    except csv.Error as problem:
        raise ValueError(f"{path}: line {line}: {problem}; close the quotation mark that begins there") from None


def _tsv(path: str | Path) -> list[Cells]:
    """Read TSV with quoting where that is how it was written, which shows in rows that fit or in doubled marks.

    Raises:
        ValueError: neither way fits all rows, and rows are torn in one.
    """
    bare = _bare(path)
    if not any(cell.startswith('"') for _, row in bare for cell in row):
        return bare
    try:
        quoted = list(_quoted(path, "\t"))
    except ValueError:
        quoted = []
    unfit, still = _unfit(bare), _unfit(quoted)
    bad = {at for at, _ in unfit}
    torn = [at for at, row in bare if _OPENED.fullmatch(row[-1]) and {at, at + 1} & bad]
    if torn and (still or not quoted):
        raise ValueError(
            f"{path}: line {torn[0]}: a quotation mark is opened and not closed in this row, and not all rows fit when "
            "it goes on in the next; write the table as CSV"
        )
    doubled = bare[0][1][0].startswith('"') or any(_DOUBLED.fullmatch(cell) for _, row in bare for cell in row)
    return quoted if quoted and (len(still) < len(unfit) or (doubled and len(still) == len(unfit))) else bare


def _unfit(cells: Sequence[Cells]) -> list[Cells]:
    """Return the rows that have another number of cells than the first."""
    return [(at, row) for at, row in cells if len(row) != len(cells[0][1])]


def read_rows(path: str | Path) -> tuple[Sequence[str], Rows]:
    """Read a file by the end of its name: the names of its columns and its rows as dictionaries.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is of another kind, or raised by `json_rows` or `table_rows`, or whether it is quoted
            cannot be told.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path}: unknown kind of file; give one that ends in {', '.join(SUFFIXES)}")
    if not suffix.startswith(".json"):
        return _table(_quoted(path) if suffix == ".csv" else iter(_tsv(path)))
    rows = [
        (place, row if isinstance(row, (dict, Unread)) else Unread("no JSON object")) for place, row in json_rows(path)
    ]
    return list(dict.fromkeys(key for _, row in rows if isinstance(row, dict) for key in row)), rows


def write_rows(path: Path, names: Sequence[str], rows: Sequence[Mapping[str, Any]], like: str | Path) -> None:
    """Write rows in the form of another file that `read_rows` reads, atomically."""
    suffix = Path(like).suffix.lower()
    if suffix.startswith(".json"):
        if read_text(like).lstrip().startswith("["):
            return runs.write_json(path, rows)
        return runs.write_text(path, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))
    bare = suffix == ".tsv" and _tsv(like) == _bare(like)
    quotes: dict[str, Any] = {"quoting": csv.QUOTE_NONE, "quotechar": None} if bare else {}
    with runs.atomic_path(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="," if suffix == ".csv" else "\t", lineterminator="\n", **quotes)
        writer.writerows([names, *([row[name] for name in names] for row in rows)])


def parse_all(
    path: str | Path, rows: Iterable[tuple[str, Row]], parse: Callable[[int, Row], Parsed], noun: str
) -> list[Parsed]:
    """Parse each row of a file; `parse` gets the running number, from 0, and the row.

    Raises:
        ValueError: `parse` raised it for a row; the message is one for all of them.
    """
    parsed, wrong = [], []
    for number, (place, row) in enumerate(rows):
        try:
            parsed.append(parse(number, row))
        except ValueError as reason:
            wrong.append(f"{place}: {reason}")
    if wrong:
        total = len(parsed) + len(wrong)
        more = f" ({len(wrong)} of {total} {noun}s cannot be used, this is the first)" if len(wrong) > 1 else ""
        raise ValueError(f"{path}: {wrong[0]}{more}")
    return parsed


def need(record: Any, key: str, *kinds: type) -> Any:
    """Return a value of a record that is of one of the kinds, str unless said otherwise.

    Raises:
        ValueError: the record is no object, lacks the key, or has a value of another kind.
    """
    kinds = kinds or (str,)
    if not isinstance(record, dict) or key not in record:
        raise ValueError(f"no {key!r}; is this the benchmark's official file?")
    if not isinstance(record[key], kinds) or (isinstance(record[key], bool) and bool not in kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"{key!r} must be {names}, got {quoted(str(record[key]), 40)}; mend it")
    return record[key]


def check_ids(path: str | Path, ids: Sequence[str], noun: str) -> None:
    """Check that a file's ids differ.

    Raises:
        ValueError: names the first id that comes again, and how many do.
    """
    if twice := [name for name, count in Counter(ids).items() if count > 1]:
        count = f" ({len(twice)} ids are used again, this is the first)" if len(twice) > 1 else ""
        raise ValueError(f"{path}: {noun} {twice[0][:100]} occurs more than once; take one of the two out{count}")


def check_whole(path: str | Path, ids: Sequence[str], labels: Sequence[int | None], noun: str) -> None:
    """Check that a file's ids differ and that all of its records have a label or none has.

    Raises:
        ValueError: names the first id that comes again, or the first record without a label, with counts.
    """
    check_ids(path, ids, noun)
    bare = [name for name, label in zip(ids, labels, strict=True) if label is None]
    if bare and len(bare) < len(ids):
        raise ValueError(
            f"{path}: {len(bare)} of {len(ids)} {noun}s have no label, the first: {noun} {bare[0][:100]}; "
            "label all of them or none"
        )
