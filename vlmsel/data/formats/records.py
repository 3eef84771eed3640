"""What a record says, whatever file it lies in: its turns and images, told by the keys that it has.

    conversations, messages   turns of from/role (human, user, gpt, assistant, system) and value/content: text or parts,
                              {"type": "text", "text": ...}, {"type": "image"}, {"type": "image_url", ...}
    texts                     rounds of user and assistant (Cauldron, FineVision)
    instruction, output       one round, `input` behind the instruction, earlier rounds as pairs in `history` (Alpaca)

and beside them `image` or `images` (a path, a list of paths, pictures as `datasets` keeps them: bytes and path),
`system`, `source` and `weight`, a positive number.

An image part becomes the marker `<image>` in its place; the text of parts stands as it is, joined by nothing. As in
TRL, images of a record without any marker stand before its first question.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from vlmsel.checks import quoted
from vlmsel.data.formats.base import ROLES, checked_sample
from vlmsel.data.formats.unread import check_read, check_turn
from vlmsel.data.rows import kind_of
from vlmsel.data.sample import Role, Sample, Turn
from vlmsel.data.templates import IMAGE

SPEAKERS: dict[str, Role] = {
    "human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt", "system": "system",
}  # fmt: skip
CONVERSATIONS = ("conversations", "messages", "texts")
ALPACA = {"instruction", "input", "output", "history"}
READ = {"image", "images", "source", "weight", "system"}
PARTS = ("image", "image_url")
Named = Callable[[int, Any], str]  # (number of the image in its record, what stands for it) -> its name


def path_of(number: int, image: Any) -> str:
    """Return the path that stands for an image.

    Raises:
        ValueError: there is none.
    """
    path = (
        next((image[key] for key in ("path", "url", "image") if image.get(key)), None) if _is_object(image) else image
    )
    if not isinstance(path, str):
        raise ValueError(f"image {number}: expected a path, got {kind_of(path)}")
    return path


def parse_record(uid: int, record: Any, named: Named = path_of) -> Sample:
    """Make a sample of a record; `named` gives the names of its images.

    Raises:
        ValueError: the record cannot be used; says why.
    """
    if not _is_object(record):
        raise ValueError(f"expected an object with 'conversations', got {kind_of(record)}")
    key = next((key for key in CONVERSATIONS if record.get(key)), None)
    own: list[Any] = []  # the images that parts of turns name
    if key is None and isinstance(record.get("output"), str) and isinstance(record.get("instruction"), str):
        turns, read = _alpaca(record), READ | ALPACA
    else:
        turns, read = _turns(record, key or "conversations", own), READ | {key or "conversations"}
    turns = _with_system(turns, record.get("system"))
    images = [named(number, image) for number, image in enumerate(_images(record, own))]
    if images and not any(IMAGE in turn.text for turn in turns):
        turns = _marked(turns, len(images))
    check_read(record, read, turns, images)
    source = record.get("source") or (record["texts"][0].get("source") if key == "texts" else None)
    return checked_sample(uid, turns, images, source, record.get("weight"))


def images_of(record: dict[str, Any]) -> list[Any]:
    """Return what stands for the images of a record that can be used, in the order in which `named` is given them."""
    own: list[Any] = []
    if key := next((key for key in CONVERSATIONS if record.get(key)), None):
        _turns(record, key, own)
    return _images(record, own)


def _turns(record: dict[str, Any], key: str, own: list[Any]) -> list[Turn]:
    """Read a list of turns, or of rounds; images that parts name are put into `own`."""
    given = record.get(key)
    if not isinstance(given, list) or not given:
        raise ValueError(f"no conversations: expected a non-empty list of turns under {key!r}{_instead(given)}")
    if key == "texts":
        return [turn for number, one in enumerate(given) for turn in _round(number, one)]
    turns = [_turn(number, turn, own) for number, turn in enumerate(given)]
    images = own or _listed(record)
    for turn in given:
        check_read(turn, set(_names(turn)), turns, images)
    return turns


def _instead(given: Any) -> str:
    return f", got {kind_of(given)}" if given else ""


def _round(number: int, one: Any) -> list[Turn]:
    texts = [one.get("user"), one.get("assistant")] if _is_object(one) else []
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"round {number}: expected an object with texts under 'user' and 'assistant'")
    turns = [Turn("human", texts[0]), Turn("gpt", texts[1])]
    for turn in turns:
        check_turn({}, turn)
    return turns


def _turn(number: int, turn: Any, own: list[Any]) -> Turn:
    if not _is_object(turn):
        raise ValueError(f"turn {number}: expected an object with 'from' and 'value', got {kind_of(turn)}")
    role, content = map(turn.get, _names(turn))
    if not isinstance(role, str) or role not in SPEAKERS:
        raise ValueError(f"turn {number}: unknown role {quoted(role)}; expected {' or '.join(map(repr, ROLES))}")
    if isinstance(content, list):
        content = "".join(_part(number, part, own) for part in content)
    if not isinstance(content, str):
        raise ValueError(f"turn {number}: expected a string under 'value', got {kind_of(content)}")
    said = Turn(SPEAKERS[role], content)
    check_turn(turn, said)
    return said


def _part(number: int, part: Any, own: list[Any]) -> str:
    """Return a part's text, or the marker of an image, which is put into `own` where the part names it."""
    if isinstance(part, str):
        return part
    kind = part.get("type") if _is_object(part) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    if kind not in PARTS:
        known = "'text' (with its text), 'image' or 'image_url'"
        raise ValueError(f"turn {number}: a part of type {quoted(kind)}; expected {known}")
    given = next((part[key] for key in ("image", "path", "url", "image_url", "bytes") if part.get(key)), None)
    if part.get("bytes"):
        given = part
    if given is not None:
        own.append(given)
    return IMAGE


def _names(turn: dict[str, Any]) -> tuple[str, str]:
    """Return the keys of a turn's role and text."""
    return "from" if "from" in turn else "role", "content" if "content" in turn and "value" not in turn else "value"


def _alpaca(record: dict[str, Any]) -> list[Turn]:
    turns = []
    for number, pair in enumerate(record.get("history") or []):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise ValueError(f"'history' {number}: expected a question and its answer")
        turns += [Turn("human", pair[0]), Turn("gpt", pair[1])]
    more = record.get("input") or ""
    if not isinstance(more, str):
        raise ValueError(f"expected a string under 'input', got {kind_of(more)}")
    asked = "\n".join(filter(None, (record["instruction"], more)))
    turns += [Turn("human", asked), Turn("gpt", record["output"])]
    for turn in turns:
        check_turn({}, turn)
    return turns


def _with_system(turns: list[Turn], system: Any) -> list[Turn]:
    """Put what stands under `system` before the turns."""
    if not system:
        return turns
    if not isinstance(system, str):
        raise ValueError(f"expected a string under 'system', got {kind_of(system)}")
    if not turns or turns[0].role != "system":
        return [Turn("system", system), *turns]
    if turns[0].text.strip() != system.strip():
        raise ValueError("'system' and the system turn differ; keep one of the two")
    return turns


def _marked(turns: Sequence[Turn], images: int) -> list[Turn]:
    """Put the markers of images before the first question."""
    first = next((number for number, turn in enumerate(turns) if turn.role == "human"), len(turns))
    return [replace(turn, text=IMAGE * images + turn.text) if i == first else turn for i, turn in enumerate(turns)]


def _images(record: dict[str, Any], own: list[Any]) -> list[Any]:
    """Return the record's images: those that its parts name, or those under `image` or `images`."""
    listed = _listed(record)
    if own and listed and own != listed:
        raise ValueError("parts of turns name images, and so does the record; keep one of the two")
    return own or listed


def _listed(record: dict[str, Any]) -> list[Any]:
    both = [one if isinstance(one, list) else [one] for one in map(record.get, ("image", "images")) if one]
    if len(both) == 2 and both[0] != both[1]:
        raise ValueError("'image' and 'images' differ; keep one of the two")
    return both[0] if both else []


def _is_object(content: Any) -> bool:
    return isinstance(content, dict)
