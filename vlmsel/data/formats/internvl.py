"""InternVL's meta files, in JSON; `mixes` says what they hold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlmsel.data.formats.mixes import LARGEST, Mix, Part, found_beside


class InternVL(Mix):
    """{"name": {"root": ..., "annotation": ..., "repeat_time": ...}, ...}"""

    name = "an InternVL meta file"
    endings = (".json",)

    def claims(self, path: Path) -> bool:
        return path.suffix == ".json" and path.is_file() and _content(path) is not None

    def parts(self, path: Path) -> list[Part]:
        content = _content(path) or {}
        return [
            Part(name, found_beside(path, one["annotation"]), one, found_beside(path, str(one.get("root") or ".")))
            for name, one in content.items()
        ]

    def rows(self, part: Part, count: int) -> np.ndarray:
        times = part.entry.get("repeat_time", 1)
        if isinstance(times, bool) or not isinstance(times, int | float) or times <= 0 or (times > 1 and times % 1):
            raise ValueError(f"repeat_time must be a share below 1 or a whole number, got {times!r}")
        return np.arange(int(count * times)) if times < 1 else np.tile(np.arange(count), int(times))

    def text(self, parts: Sequence[Part]) -> str:
        named = {
            part.name: {**part.entry, "root": str(part.root), "annotation": str(part.file), "repeat_time": 1}
            for part in parts
        }
        return json.dumps(named, indent=1, ensure_ascii=False) + "\n"


def _content(path: Path) -> dict[str, Any] | None:
    """Return what a file holds when it is a meta file."""
    with open(path, "rb") as file:
        if path.stat().st_size > LARGEST or not file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
            return None
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or not content:
        return None
    whole = all(isinstance(one, dict) and isinstance(one.get("annotation"), str) for one in content.values())
    return content if whole else None
