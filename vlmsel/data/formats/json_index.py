"""Where the records of a JSON list, or of JSON lines, lie in their file; found in one pass that holds a part of it.

A list is read as the decoder itself goes through it; a value that the part in memory cuts off is tried again with twice
as much. Lines end at line feeds alone.
"""

from __future__ import annotations

import codecs
import json
import os
import re
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, overload

from vlmsel.data.rows import kind_of

PART = 1 << 20  # bytes
_BLANKS = re.compile(r"[ \t\r\n]*")
_MARK = codecs.BOM_UTF8
_decoder = json.JSONDecoder()


class JsonRecords(Sequence[Any]):
    """The records of a file, each read and decoded when it is asked for.

    Args:
        path: the file.
        starts: where each record begins, in bytes.
        lengths: how many bytes it has.
    """

    def __init__(self, path: Path, starts: array[int], lengths: array[int]) -> None:
        self.path, self.starts, self.lengths = path, starts, lengths
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
            ValueError: it is no JSON; names file and line.
        """
        if isinstance(uid, slice):
            return [self[one] for one in range(*uid.indices(len(self)))]
        try:
            return _decoder.decode(self._bytes(uid).decode("utf-8"))
        except (ValueError, RecursionError) as problem:
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

    def _bytes(self, uid: int) -> bytes:
        if self._handle is None:
            self._handle = os.getpid(), os.open(self.path, os.O_RDONLY)
        return os.pread(self._handle[1], self.lengths[uid], self.starts[uid])


def index(path: Path) -> tuple[array[int], array[int]]:
    """Return where the records of a file begin and how many bytes they have.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, not UTF-8, no JSON, or one JSON value over several lines that is no list.
    """
    if path.is_dir():
        raise ValueError(f"{path}: a folder without parquet files that is none of `datasets` either; name a file in it")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with open(path, "rb") as file:
        begin = len(_MARK) if file.read(len(_MARK)) == _MARK else 0
        file.seek(begin)
        try:
            if _opening(file) == b"[":  # which may be one line of all records
                file.seek(begin)
                return _List(path, file).spans(begin)
            file.seek(begin)
            first = next((line.lstrip() for line in file if line.strip()), None)
            if first is None:
                raise ValueError(f"{path}: the file is empty")
            file.seek(begin)
            found = _lines(file, begin)
        except UnicodeDecodeError as problem:
            raise ValueError(f"{path}: not a text file in UTF-8 ({problem})") from None
    _refuse_one_value(path, first)
    return found


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
