"""COCO's caption files, in JSON: {"images": [{"id", "file_name"}], "annotations": [{"id", "image_id", "caption"}]}.

A record is a caption with its image's entry under `image`; a choice has the chosen captions and the images they need.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from vlmsel.checks import quoted
from vlmsel.data.formats.base import Form, checked_sample
from vlmsel.data.rows import kind_of
from vlmsel.data.sample import Sample, Turn
from vlmsel.data.templates import IMAGE
from vlmsel.runs import atomic_path

ASKED = f"{IMAGE}\nDescribe the image briefly."
_HEAD = 1 << 20  # bytes that tell a JSON object from JSON lines
_LISTS = ("images", "annotations")


class Coco(Form):
    """A caption is a sample: the picture, a request to describe it, and the caption as the answer."""

    name = "a COCO caption file"

    def claims(self, path: Path) -> bool:
        return path.suffix == ".json" and path.is_file() and _content(path) is not None

    def fits(self, path: Path) -> bool:
        return path.suffix == ".json"

    def read(self, path: Path) -> Sequence[Any]:
        content = _content(path) or {}
        images = {str(one.get("id")): one for one in content["images"] if isinstance(one, dict)}
        return [
            {**one, "image": images.get(str(one.get("image_id")))} if isinstance(one, dict) else one
            for one in content["annotations"]
        ]

    def write(self, path: Path, records: Iterable[Any]) -> None:
        _write(path, records, {})

    def write_part(self, path: Path, pool: Path, uids: Sequence[int]) -> None:
        records, content = self.read(pool), _content(pool) or {}
        about = {key: value for key, value in content.items() if key not in _LISTS}
        _write(path, (records[uid] for uid in uids), about)

    def parse(self, uid: int, record: Any) -> Sample:
        if not isinstance(record, dict):
            raise ValueError(f"expected an annotation, an object, got {kind_of(record)}")
        caption, image = record.get("caption"), record["image"]
        if not isinstance(caption, str):
            raise ValueError(f"no text under 'caption', got {kind_of(caption)}; is this COCO's file of captions?")
        if image is None:
            raise ValueError(f"no image has the id {quoted(str(record.get('image_id')))}, its image_id")
        if not isinstance(image.get("file_name"), str):
            raise ValueError(f"its image has no text under 'file_name', got {kind_of(image.get('file_name'))}")
        turns = (Turn("human", ASKED), Turn("gpt", caption.strip()))
        return checked_sample(uid, turns, (image["file_name"],), weight=record.get("weight"))


def _write(path: Path, records: Iterable[Any], about: Mapping[str, Any]) -> None:
    """Write captions with the images that they need, each once, in the order in which they are needed."""
    images: dict[str, Any] = {}
    captions = []
    for record in records:
        captions.append({key: value for key, value in record.items() if key != "image"})
        if record["image"] is not None:
            images.setdefault(str(record["image_id"]), record["image"])
    with atomic_path(path) as part:
        text = json.dumps({**about, "images": list(images.values()), "annotations": captions})
        part.write_text(text + "\n", encoding="utf-8")


def _content(path: Path) -> dict[str, Any] | None:
    """Return what a file holds when it is of COCO's layout."""
    about = path.stat()
    return _whole(path.resolve(), about.st_mtime_ns, about.st_size)


@lru_cache(2)  # pool and targets are asked for several times, and the official file has 90 MB
def _whole(path: Path, changed: int, size: int) -> dict[str, Any] | None:
    with open(path, "rb") as file:
        head = file.read(_HEAD).removeprefix(b"\xef\xbb\xbf")
    if not head.lstrip().startswith(b"{") or not any(f'"{name}"'.encode() in head for name in _LISTS):
        return None
    if size > _HEAD and _first_is_whole(head):  # JSON lines
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or not all(isinstance(content.get(name), list) for name in _LISTS):
        return None
    return content if any(isinstance(one, dict) and "image_id" in one for one in content["annotations"]) else None


def _first_is_whole(head: bytes) -> bool:
    """Tell whether the first JSON value ends within these bytes."""
    try:
        json.JSONDecoder().raw_decode(head.decode("utf-8", "ignore").lstrip())
    except (ValueError, RecursionError):
        return False
    return True
