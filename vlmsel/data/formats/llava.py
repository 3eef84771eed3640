"""Conversation files in LLaVA's format: a JSON list or, as files named `.jsonl` are written, JSON lines of

    {"id": ..., "image": "coco/train2017/000.jpg", "conversations": [{"from": "human", "value": "<image>\\n..."}, ...]}

`image` may be missing (text only) or a list; `images` means the same. `source` and `weight`, a positive number, may
be there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vlmsel.data.formats.base import ROLES, Form, checked_sample
from vlmsel.data.rows import json_rows, kind_of, parse_all, readable
from vlmsel.data.sample import Sample, Turn
from vlmsel.runs import write_text


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
        conversations = record.get("conversations")
        if not isinstance(conversations, list) or not conversations:
            raise ValueError("no conversations: expected a non-empty list of turns under 'conversations'")
        turns = [_turn(number, turn) for number, turn in enumerate(conversations)]
        return checked_sample(uid, turns, _images(record), record.get("source"), record.get("weight"))


def _turn(number: int, turn: Any) -> Turn:
    if not isinstance(turn, dict):
        raise ValueError(f"turn {number}: expected an object with 'from' and 'value', got {kind_of(turn)}")
    role, text = turn.get("from"), turn.get("value")
    if role not in ROLES:
        raise ValueError(f"turn {number}: unknown role {role!r}; expected 'human' or 'gpt'")
    if not isinstance(text, str):
        raise ValueError(f"turn {number}: expected a string under 'value', got {kind_of(text)}")
    return Turn(role, text)


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
