"""What `parse_record` says of a plain record, found in a tenth of its time: of most records of most pools.

Plain is: nothing but an id, a source, turns of question and answer in text, and at most one image with at most its
marker. Whatever is not plain, right or wrong, is left to `parse_record`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from vlmsel.data.formats.base import key_of, path_problem, source_of
from vlmsel.data.templates import IMAGE

_NAMES = {"conversations": ("from", "value", ["human", "gpt"]), "messages": ("role", "content", ["user", "assistant"])}
_KEYS = {name: {"id", "source", "image", name} for name in _NAMES}


class Seen(NamedTuple):
    """A sample's source, how many images it has, all in the image folder, and its `key_of`."""

    source: str
    images: int
    key: int


def glance(record: Any) -> Seen | None:
    """Return what is seen of a plain record, None for another record.

    >>> said = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "red"}]
    >>> glance({"conversations": said}).source, glance({"conversations": said, "weight": -1})
    ('text', None)
    """
    if not isinstance(record, dict):
        return None
    name = "messages" if "messages" in record else "conversations"
    if not record.keys() <= _KEYS[name]:
        return None
    if (whole := _texts(record.get(name), *_NAMES[name])) is None:
        return None
    image, marks = record.get("image"), whole.count("<")
    if not image:
        return None if marks else Seen(source_of(record.get("source"), ()), 0, key_of((), whole))
    if type(image) is not str or not image.isascii() or marks != whole.count(IMAGE) or marks > 1 or path_problem(image):
        return None
    return Seen(source_of(record.get("source"), (image,)), 1, key_of((image,), whole))


def _texts(turns: Any, role: str, text: str, speakers: list[str]) -> str | None:
    """Return what the turns say, one after the other, where each is its speaker and a text."""
    if type(turns) is not list or not turns or len(turns) % 2:
        return None
    try:
        roles, texts = [turn[role] for turn in turns], [turn[text] for turn in turns]
        whole = "\n".join(texts)
    except (KeyError, TypeError):
        return None
    if roles != speakers * (len(turns) // 2) or sum(map(len, turns)) != 2 * len(turns):
        return None
    return whole if whole.isascii() or _is_text(whole) else None


def _is_text(whole: str) -> bool:
    try:
        whole.encode()
    except UnicodeEncodeError:
        return False
    return True
