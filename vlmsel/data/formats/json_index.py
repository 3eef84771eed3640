"""Where the records of a JSON list, or of JSON lines, lie in their file; found in one pass that holds a part of it.

Records of a list lie between the commas that stand in no string and no brackets but the list's own, which are counted
without decoding anything. What is wrong with a list that does not come out even, or with a record of it that is no
JSON, is said by the decoder, which goes through it value by value; one that the part in memory cuts off is tried again
with twice as much. Lines end at line feeds alone.
"""

from __future__ import annotations

import codecs
import json
import os
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, overload

import numpy as np

from vlmsel.data.rows import kind_of

PART = 1 << 20  # bytes
_BLANKS = re.compile(r"[ \t\r\n]*")
_MARK = codecs.BOM_UTF8
_QUOTE, _COMMA = b'",'
_STEP = np.zeros(256, np.int8)  # how much deeper it is behind a mark
_STEP[list(b"[{")], _STEP[list(b"]}")] = 1, -1
_MARKED = _STEP != 0
_MARKED[[_QUOTE, _COMMA]] = True
_decoder = json.JSONDecoder()


class JsonRecords(Sequence[Any]):
    """The records of a file, each read and decoded when it is asked for.

    Args:
        path: the file.
        starts: where each record begins, in bytes.
        lengths: how many bytes it has, blanks around it included.
        listed: whether they are those of a list.
    """

    def __init__(self, path: Path, starts: array[int], lengths: array[int], listed: bool) -> None:
        self.path, self.starts, self.lengths, self.listed = path, starts, lengths, listed
        self._handle: tuple[int, int] | None = None  # of this process

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, uid: int) -> Any: ...
    @overload
    def __getitem__(self, uid: slice) -> list[Any]: ...
    def __getitem__(self, uid: int | slice) -> Any:
        """Read a record.

        Raises:
            ValueError: it is no JSON; names file and line, or its number in a list.
        """
        if isinstance(uid, slice):
            asked = range(*uid.indices(len(self)))
            whole = self._together(asked) if self.listed and asked.step == 1 and len(asked) > 1 else None
            return [self[one] for one in asked] if whole is None else whole
        try:
            return _decoder.decode(self._bytes(self.starts[uid], self.lengths[uid]).decode("utf-8"))
        except (ValueError, RecursionError) as problem:
            if self.listed:
                _walk(self.path)  # which ends there
            line = 1 + _count_lines(self.path, self.starts[uid])
            raise ValueError(f"{self.path}: line {line}: not JSON ({_why(problem)})") from None

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Sequence)
            and len(self) == len(other)
            and all(a == b for a, b in zip(self, other, strict=True))
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None}

    def __del__(self, close: Callable[[int], None] = os.close, process: Callable[[], int] = os.getpid) -> None:
        # by default arguments, as modules may be gone when the interpreter ends
        if (handle := getattr(self, "_handle", None)) is not None and handle[0] == process():
            close(handle[1])

    def _together(self, uids: range) -> list[Any] | None:
        """Decode neighbours in a list as the list that they are, in half the time; None where one is no JSON."""
        begin = self.starts[uids[0]]
        content = self._bytes(begin, self.starts[uids[-1]] + self.lengths[uids[-1]] - begin)
        try:
            return _decoder.decode(f"[{content.decode('utf-8')}]")
        except (ValueError, RecursionError):
            return None

    def _bytes(self, begin: int, size: int) -> bytes:
        if self._handle is None:
            self._handle = os.getpid(), os.open(self.path, os.O_RDONLY)
        return os.pread(self._handle[1], size, begin)


def index(path: Path) -> tuple[array[int], array[int], bool]:
    """Return where the records of a file begin and how many bytes they have, and whether the file is a list.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, not UTF-8, no JSON, or one JSON value over several lines that is no list.
    """
    if path.is_dir():
        raise ValueError(f"{path}: a folder without parquet files that is none of `datasets` either; name a file in it")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with open(path, "rb") as file:
        begin = _begin(file)
        if _opening(file) == b"[":  # which may be one line of all records
            file.seek(begin)
            starts, lengths = _between_commas(file, begin) or _walk(path)
            return starts, lengths, True
        file.seek(begin)
        first = next((line.lstrip() for line in file if line.strip()), None)
        if first is None:
            raise ValueError(f"{path}: the file is empty")
        file.seek(begin)
        with _in_utf8(path):
            starts, lengths = _lines(file, begin)
    _refuse_one_value(path, first)
    return starts, lengths, False


def _begin(file: IO[bytes]) -> int:
    """Go to the first byte behind a mark of the encoding, and say where it is."""
    return file.seek(len(_MARK) if file.read(len(_MARK)) == _MARK else 0)


@contextmanager
def _in_utf8(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as problem:
        raise ValueError(f"{path}: not a text file in UTF-8 ({problem})") from None


def _opening(file: IO[bytes]) -> bytes:
    """Return the first byte that is not blank, b"" where there is none."""
    while chunk := file.read(1024):
        if rest := chunk.lstrip():
            return rest[:1]
    return b""


def _lines(file: IO[bytes], at: int) -> tuple[array[int], array[int]]:
    starts, lengths = array("Q"), array("Q")
    for line in file:
        line.decode("utf-8")
        if line.strip():
            starts.append(at)
            lengths.append(len(line))
        at += len(line)
    return starts, lengths


def _refuse_one_value(path: Path, first: bytes) -> None:
    """Refuse a file whose first line is no record while the whole file is one, such as a configuration."""
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        try:
            content = json.loads(path.read_text(encoding="utf-8-sig"))
        except (ValueError, RecursionError):
            return  # reading the first record says what is wrong
        raise ValueError(f"{path}: expected a list of records, got {kind_of(content)}") from None


def _between_commas(file: IO[bytes], at: int) -> tuple[array[int], array[int]] | None:
    """Return where the records of a list begin and how many bytes they have; None where it does not come out even."""
    found, rest, depth, quoted, zeros = [np.zeros(0, np.int64)], b"", 0, 0, 0
    while chunk := file.read(PART):
        part = rest + chunk
        odd = (len(part) - len(part.rstrip(b"\\"))) % 2  # what the last backslash escapes is in the next part
        part, rest = part[: len(part) - odd], part[len(part) - odd :]
        values = np.frombuffer(part.replace(b"\\\\", b"  ").replace(b'\\"', b"  "), np.uint8)
        places = np.flatnonzero(_MARKED[values])
        marks = values[places]
        quotes = quoted + np.cumsum(marks == _QUOTE)
        outside = (marks != _QUOTE) & (quotes % 2 == 0)
        places, marks = places[outside], marks[outside]
        steps = _STEP[marks]
        depths = depth + np.cumsum(steps, dtype=np.int64)
        edges = (depths == 0) | (depths == steps) | ((depths == 1) & (marks == _COMMA))
        found.append(at + places[edges])
        zeros += int((depths == 0).sum())
        depth, quoted = int([depth, *depths[-1:]][-1]), int([quoted, *quotes[-1:]][-1]) % 2
        at += len(part)
    between = np.concatenate(found)
    if depth or zeros != 1 or not _blank(file, between[-1] + 1, None):
        return None
    if len(between) == 2 and _blank(file, between[0] + 1, between[1]):
        between = between[:1]
    return array("Q", (between[:-1] + 1).tobytes()), array("Q", (np.diff(between) - 1).tobytes())


def _blank(file: IO[bytes], begin: int, end: int | None) -> bool:
    file.seek(begin)
    return not file.read(-1 if end is None else end - begin).strip()


def _walk(path: Path) -> tuple[array[int], array[int]]:
    """Return what `_between_commas` does, slowly.

    Raises:
        ValueError: it is not UTF-8 or no JSON; names the record.
    """
    with open(path, "rb") as file, _in_utf8(path):
        return _List(path, file).spans(_begin(file))


class _List:
    """A JSON list, of which a part is in memory: `text`, read up to `at`, which lies `place` bytes into the file."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path, self.file = path, file
        self.decode = codecs.getincrementaldecoder("utf-8")().decode
        self.text, self.at, self.place, self.ended = "", 0, 0, False

    def spans(self, begin: int) -> tuple[array[int], array[int]]:
        """Return where its records, the first of which lies behind `begin` bytes, begin and how long they are."""
        starts, lengths = array("Q"), array("Q")
        self.place = begin
        self._take("[")
        closed = self._next() == "]"
        while not closed:
            self._blanks()
            starts.append(self.place)
            lengths.append(self._value(len(starts)))
            closed = self._next() == "]"
            if not closed:
                self._take(",")
        self._take("]")
        if self._next():
            raise ValueError(f"{self.path}: not a JSON file (extra data behind the list)")
        return starts, lengths

    def _value(self, number: int) -> int:
        """Go through a value; return its bytes."""
        while True:
            try:
                end: int | None = _decoder.raw_decode(self.text, self.at)[1]
                problem: Exception | None = None
            except (ValueError, RecursionError) as error:
                end, problem = None, error
            if end is not None and (end < len(self.text) or self.ended):
                return self._advance(end)
            if self.ended:
                assert problem is not None
                raise ValueError(f"{self.path}: not a JSON file (record {number}: {_why(problem)})")
            self._more()

    def _next(self) -> str:
        """Return the next character that is not blank; "" at the end."""
        self._blanks()
        return self.text[self.at : self.at + 1]

    def _take(self, mark: str) -> None:
        if (found := self._next()) != mark:
            raise ValueError(f"{self.path}: not a JSON file (expected {mark!r}, got {found or 'the end'!r})")
        self._advance(self.at + 1)

    def _blanks(self) -> None:
        while True:
            match = _BLANKS.match(self.text, self.at)
            assert match is not None
            self._advance(match.end())
            if self.at < len(self.text) or self.ended:
                return
            self._more()

    def _advance(self, end: int) -> int:
        passed = self.text[self.at : end]
        size = len(passed) if passed.isascii() else len(passed.encode())
        self.at, self.place = end, self.place + size
        return size

    def _more(self) -> None:
        rest = self.text[self.at :]
        chunk = self.file.read(max(PART, len(rest)))
        self.ended = not chunk
        self.text, self.at = rest + self.decode(chunk, final=self.ended), 0


def _count_lines(path: Path, end: int) -> int:
    with open(path, "rb") as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(min(PART, end - file.tell())), b""))


def _why(problem: Exception) -> str:
    if isinstance(problem, RecursionError):
        return "nested too deeply"
    return problem.msg if isinstance(problem, json.JSONDecodeError) else str(problem)
