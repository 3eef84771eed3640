"""Conversation files in LLaVA's format: a JSON list (or `.jsonl`, one record a line) of

    {"id": ..., "image": "coco/train2017/000.jpg", "conversations": [{"from": "human", "value": "<image>\\n..."}, ...]}

`image` may be missing (text only) or a list; `images` means the same. As in LLaVA (arXiv 2304.08485) an opening turn of
the assistant is dropped and turns must alternate after it. Unlike there, a record that cannot be used does not stop the
run: it becomes a `Problem` with a reason, and every other sample keeps its uid, the position in the file. Records are
kept as they are, with all their keys, so that a selection can be written in the format it came in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from vlmsel.data.sample import Sample, Turn
from vlmsel.data.templates import IMAGE
from vlmsel.runs import read_json, write_text

ROLES = ("human", "gpt")
_KNOWN_SOURCE = re.compile(r"(ocr_vqa|textvqa|coco|gqa|vg)(?![a-z])")


@dataclass(frozen=True)
class Problem:
    """Why the sample `uid` cannot be used."""

    uid: int
    reason: str


@dataclass(frozen=True)
class Pool:
    """What a file holds: usable samples, one problem per unusable one, and all records as they were read."""

    samples: list[Sample]
    problems: list[Problem]
    records: list[dict[str, Any]]


def read_samples(path: str | Path) -> Pool:
    """Read a conversation file; `samples` and `problems` are in the order of the file and together cover it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file as a whole is not JSON or not a list.
    """
    records = read_records(path)
    samples, problems = [], []
    for uid, record in enumerate(records):
        try:
            samples.append(parse_record(uid, record))
        except ValueError as reason:
            problems.append(Problem(uid, str(reason)))
    return Pool(samples, problems, records)


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """Read the records of a file, unchecked; the position of a record is its uid.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not JSON or not a list.
    """
    path = Path(path)
    try:
        content = _read_lines(path) if path.suffix == ".jsonl" and path.is_file() else read_json(path)
    except RecursionError:
        raise ValueError(f"{path}: nested too deeply to be a conversation file") from None
    if not isinstance(content, list):
        kind = _kind(content)
        raise ValueError(f"{path}: expected a list of conversations as in LLaVA's JSON files, got {kind}")
    return content


def _read_lines(path: Path) -> list[Any]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as problem:
        raise ValueError(f"{path}: not a UTF-8 text file ({problem})") from None
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as problem:
            raise ValueError(f"{path}: line {number} is not JSON ({problem})") from None
    return records


def write_records(path: str | Path, records: Iterable[dict[str, Any]]) -> None:
    """Write records as a JSON list (one a line for `.jsonl`); a killed process leaves the old file or the new one."""
    if Path(path).suffix == ".jsonl":
        write_text(path, "".join(json.dumps(record) + "\n" for record in records))
    else:
        write_text(path, json.dumps(list(records), indent=1) + "\n")


def parse_record(uid: int, record: Any) -> Sample:
    """Make a sample of one record.

    Raises:
        ValueError: the record cannot be used; the message says why, without naming the record.
    """
    if not isinstance(record, dict):
        raise ValueError(f"expected an object with 'conversations', got {_kind(record)}")
    turns = _parse_turns(record.get("conversations"))
    images = _parse_images(record)
    markers = sum(turn.text.count(IMAGE) for turn in turns)
    if images and markers != len(images):
        raise ValueError(f"{markers} {IMAGE} markers for {len(images)} images; the two numbers must be equal")
    identity = record.get("id")
    return Sample(
        uid=uid,
        source=source_of(record.get("source"), images),
        images=images,
        turns=turns,
        id=identity if isinstance(identity, (str, int)) else None,
    )


def source_of(given: Any, images: Sequence[str]) -> str:
    """Name the data set a sample came from: what the record says, else what the path of its first image tells.

    >>> source_of(None, ["coco/train2017/000000033471.jpg"]), source_of(None, ["VG_100K/2.jpg"]), source_of(None, [])
    ('coco', 'vg', 'text')
    >>> source_of(None, ["charts/12.png"]), source_of(None, ["12.png"]), source_of("mine", ["coco/1.jpg"])
    ('charts', 'images', 'mine')
    """
    if isinstance(given, str) and given:
        return given
    if not images:
        return "text"
    path = PurePosixPath(images[0])
    if known := _KNOWN_SOURCE.match(str(path).lower()):
        return known.group(1)
    return path.parts[0] if len(path.parts) > 1 else "images"


def path_problem(path: str) -> str | None:
    """Say why an image path of an untrusted file must not be opened, None when it may lead into the image folder.

    >>> path_problem("../secret.png")
    "image path '../secret.png' leaves the image folder; give paths relative to it and without '..'"
    """
    if "\0" in path or not path.strip():
        return f"image path {path!r} is not a path"
    steps = re.split(r"[\\/]", path)
    if path[0] in "\\/" or ".." in steps or re.match(r"[A-Za-z]:[\\/]", path):
        return f"image path {path!r} leaves the image folder; give paths relative to it and without '..'"
    return None


def _parse_turns(conversations: Any) -> tuple[Turn, ...]:
    if not isinstance(conversations, list) or not conversations:
        raise ValueError("no conversations: expected a non-empty list of turns under 'conversations'")
    turns = [_parse_turn(number, turn) for number, turn in enumerate(conversations)]
    kept = turns[1:] if turns[0].role == "gpt" else turns
    if not any(turn.role == "gpt" for turn in kept):
        raise ValueError("no turn from 'gpt' that answers a human, so that there is nothing to learn")
    for number, turn in enumerate(kept, len(turns) - len(kept)):
        expected = ROLES[(number - len(turns) + len(kept)) % 2]
        if turn.role != expected:
            raise ValueError(f"turn {number} is from {turn.role!r}, expected {expected!r}: turns must alternate")
    return tuple(kept)


def _parse_turn(number: int, turn: Any) -> Turn:
    if not isinstance(turn, dict):
        raise ValueError(f"turn {number}: expected an object with 'from' and 'value', got {_kind(turn)}")
    role, text = turn.get("from"), turn.get("value")
    if role not in ROLES:
        raise ValueError(f"turn {number}: unknown role {role!r}; expected 'human' or 'gpt'")
    if not isinstance(text, str):
        raise ValueError(f"turn {number}: expected a string under 'value', got {_kind(text)}")
    _require_text(f"turn {number}", text)
    return Turn(role, text)


def _parse_images(record: dict[str, Any]) -> tuple[str, ...]:
    both = [_listed(key, record[key]) for key in ("image", "images") if record.get(key)]
    if len(both) == 2 and both[0] != both[1]:
        raise ValueError("'image' and 'images' differ; keep one of the two")
    images = both[0] if both else []
    for path in images:
        _require_text("image path", path)
        if problem := path_problem(path):
            raise ValueError(problem)
    return tuple(images)


def _listed(key: str, content: Any) -> list[str]:
    paths = content if isinstance(content, list) else [content]
    for path in paths:
        if not isinstance(path, str):
            raise ValueError(f"expected a path or a list of paths under {key!r}, got {_kind(path)}")
    return paths


def _require_text(what: str, text: str) -> None:
    """Refuse lone surrogates, which JSON can hold and neither a tokenizer nor a file system takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{what}: the text holds half of a surrogate pair; mend its encoding") from None


def _kind(content: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(content), "a number")
