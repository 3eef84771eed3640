"""Conversation files in LLaVA's format: a JSON list or, as files named `.jsonl` are written, JSON lines of

    {"id": ..., "image": "coco/train2017/000.jpg", "conversations": [{"from": "human", "value": "<image>\\n..."}, ...]}

`image` may be missing (text only) or a list; `images` means the same. `source` and `weight`, a positive number, may
be there. `messages` of `role` (user, assistant) and `content` are turns as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vlmsel.checks import quoted
from vlmsel.data.formats.base import ROLES, Form, checked_sample
from vlmsel.data.formats.unread import check_read, check_turn
from vlmsel.data.rows import json_rows, kind_of, parse_all, readable
from vlmsel.data.sample import Role, Sample, Turn
from vlmsel.runs import write_text

SPEAKERS: dict[str, Role] = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}
READ = {"image", "images", "source", "weight"}


class Llava(Form):
    """LLaVA's JSON and JSON lines; takes every file that no other form claims."""

    name = "LLaVA JSON"

    def claims(self, path: Path) -> bool:
        return True

    def read(self, path: Path) -> list[Any]:
        return parse_all(path, json_rows(path), lambda uid, record: readable(record), "record")

    def write(self, path: Path, records: Iterable[Any]) -> None:
        if path.suffix == ".jsonl":
            write_text(path, "".join(json.dumps(record) + "\n" for record in records))
        else:
            write_text(path, json.dumps(list(records), indent=1) + "\n")

    def parse(self, uid: int, record: Any) -> Sample:
        if not isinstance(record, dict):
            raise ValueError(f"expected an object with 'conversations', got {kind_of(record)}")
        key = next((key for key in ("conversations", "messages") if record.get(key)), "conversations")
        conversations = record.get(key)
        if not isinstance(conversations, list) or not conversations:
            raise ValueError("no conversations: expected a non-empty list of turns under 'conversations'")
        turns, images = [_turn(number, turn) for number, turn in enumerate(conversations)], _images(record)
        check_read(record, READ | {key}, turns, images)
        for turn in conversations:
            check_read(turn, set(_names(turn)), turns, images)
        return checked_sample(uid, turns, images, record.get("source"), record.get("weight"))


def _turn(number: int, turn: Any) -> Turn:
    if not isinstance(turn, dict):
        raise ValueError(f"turn {number}: expected an object with 'from' and 'value', got {kind_of(turn)}")
    role, text = map(turn.get, _names(turn))
    if not isinstance(role, str) or role not in SPEAKERS:
        raise ValueError(f"turn {number}: unknown role {quoted(role)}; expected {' or '.join(map(repr, ROLES))}")
    if not isinstance(text, str):
        raise ValueError(f"turn {number}: expected a string under 'value', got {kind_of(text)}")
    said = Turn(SPEAKERS[role], text)
    check_turn(turn, said)
    return said


def _names(turn: dict[str, Any]) -> tuple[str, str]:
    """Return the keys of a turn's role and text."""
    return "from" if "from" in turn else "role", "content" if "content" in turn and "value" not in turn else "value"


def _images(record: dict[str, Any]) -> list[str]:
    both = [_listed(key, record[key]) for key in ("image", "images") if record.get(key)]
    if len(both) == 2 and both[0] != both[1]:
        raise ValueError("'image' and 'images' differ; keep one of the two")
    return both[0] if both else []


def _listed(key: str, content: Any) -> list[str]:
    paths = content if isinstance(content, list) else [content]
    for path in paths:
        if not isinstance(path, str):
            raise ValueError(f"expected a path or a list of paths under {key!r}, got {kind_of(path)}")
    return paths
