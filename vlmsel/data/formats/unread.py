"""What a record holds and no form reads: it is left out with a reason, for without it it would be another sample.

A key that is not known is metadata unless it names a video or sound, names a picture while none is read, holds text of
the conversation that no turn has, or says what of a turn is learnt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vlmsel.checks import quoted
from vlmsel.data.sample import Turn

_ENDING = r"s?([_-]?(file|path|url|name)s?)?"
_PICTURE = re.compile(f"(image|img|picture|photo){_ENDING}", re.I)
_OTHER = re.compile(f"(video|audio|sound|speech){_ENDING}", re.I)
_FILE = re.compile(r"\S+\.(jpe?g|png|gif|webp|bmp|tiff?|mp4|avi|mkv|mov|webm|wav|mp3|flac)|data:image.*", re.I | re.S)
_MARKER = re.compile(r"\A\s*<(video|audio)>|<(video|audio)>\s*\Z")
_TEXTS = {
    "system_prompt", "system_message", "tools", "functions", "tool_calls", "function_call", "history",
    "conversation", "messages", "instruction", "prompt", "context", "documents", "reasoning_content",
    "content",
}  # fmt: skip
_MASKS = {"loss", "train", "weight"}
_NAMES = {"id", "source"}  # that may look like a file's


def check_read(record: Mapping[str, Any], read: set[str], turns: Sequence[Turn], images: Sequence[str]) -> None:
    """Refuse a record that holds more than its turns and images.

    Args:
        record: the record, or one turn of it.
        read: its keys that have been read.
        turns: what was read of them.
        images: as `turns`.

    Raises:
        ValueError: names the key and says what it holds.
    """
    for key, content in record.items():
        if key in read or not content:
            continue
        if _OTHER.fullmatch(key):
            raise ValueError(f"{quoted(key)} names what no model here reads; take videos and sounds out")
        if not images and (_PICTURE.fullmatch(key) or (key not in _NAMES and _is_file(content))):
            raise ValueError(f"{quoted(key)} names a picture that is not read; give it under 'image'")
        if key in _TEXTS and not (isinstance(content, str) and any(content.strip() in turn.text for turn in turns)):
            raise ValueError(f"{quoted(key)} holds text that is not read; put it into the turns")


def check_turn(turn: Mapping[str, Any], said: Turn) -> None:
    """Refuse a turn that says how much of it is learnt, or speaks of a video or sound.

    Raises:
        ValueError: says which.
    """
    for key in _MASKS & turn.keys():
        if turn[key] is not None and turn[key] != 1:
            raise ValueError(f"{quoted(key)} is not read of a turn: all answers are learnt; leave it out")
    if said.role == "human" and (found := _MARKER.search(said.text)):
        raise ValueError(f"{found.group().strip()} marks what no model here reads; take videos and sounds out")


def _is_file(content: Any) -> bool:
    first = content[0] if isinstance(content, list) else content
    return isinstance(first, str) and _FILE.fullmatch(first) is not None
