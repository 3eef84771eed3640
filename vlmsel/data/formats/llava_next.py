"""LLaVA-NeXT's mixes, in YAML; `mixes` says what they hold."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from vlmsel.checks import quoted
from vlmsel.data.formats.mixes import LARGEST, Mix, Part, found_beside

_STRATEGY = re.compile(r"(first|end|random):(\d+)(%?)")


class LlavaNext(Mix):
    """datasets: [{json_path: ..., sampling_strategy: ...}, ...]"""

    name = "a LLaVA-NeXT mix"
    endings = (".yaml", ".yml")

    def claims(self, path: Path) -> bool:
        return path.suffix in self.endings

    def parts(self, path: Path) -> list[Part]:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        try:
            content = None if path.stat().st_size > LARGEST else yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError):
            content = None
        entries = content.get("datasets") if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(map(_is_entry, entries)):
            raise ValueError(f"{path}: expected a mix in YAML, `datasets: [{{json_path: ...}}, ...]`")
        return [Part(Path(one["json_path"]).stem, found_beside(path, one["json_path"]), one) for one in entries]

    def rows(self, part: Part, count: int) -> np.ndarray:
        strategy = str(part.entry.get("sampling_strategy") or "all")
        if strategy == "all":
            return np.arange(count)
        if not (match := _STRATEGY.fullmatch(strategy)):
            raise ValueError(
                f"sampling_strategy must be all, first:N, end:N or random:N, N a number or a share as 10%; "
                f"got {quoted(strategy)}"
            )
        kind, number = match[1], int(match[2])
        most = min(count, math.ceil(number * count / 100) if match[3] else number)
        if kind == "random":
            return np.sort(np.random.default_rng([*f"mix {part.name}".encode()]).permutation(count)[:most])
        return np.arange(most) if kind == "first" else np.arange(count - most, count)

    def text(self, parts: Sequence[Part]) -> str:
        entries = [{**part.entry, "json_path": str(part.file), "sampling_strategy": "all"} for part in parts]
        return yaml.safe_dump({"datasets": entries}, sort_keys=False, allow_unicode=True)


def _is_entry(one: Any) -> bool:
    return isinstance(one, dict) and isinstance(one.get("json_path"), str)
