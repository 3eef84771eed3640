"""A glance at a record finds what parsing it finds, or leaves it alone."""

import random

import pytest

from vlmsel.data.formats.glance import glance
from vlmsel.data.formats.records import parse_record

TEXTS = ["What?", "red", "", "a < b", "<image>", "<image>\nWhat?", "<video>\nWhat?", "<image>a<image>", "\ud800", "ü"]
ROLES = ["human", "gpt", "user", "assistant", "system", 3]
IMAGES = ["a.png", "coco/1.jpg", "../b.png", "", None, [], ["a.png"], {"path": "a.png"}, 3, "http://a.b/c.png", "ü.png"]
MORE = {
    "id": ["a.png", 3, None], "source": ["mine", "", 3, None], "weight": [2, -1], "system": ["Be brief.", ""],
    "video": ["a.mp4", None], "images": [["a.png"]], "note": ["b.png", "c"], "input": ["more"],
}  # fmt: skip


def turn(rng, number, names, plain):
    roles = ("human", "gpt") if names[0] == "from" else ("user", "assistant")
    role = roles[number % 2] if rng.random() < 0.97 or plain else rng.choice(ROLES)
    text = rng.choice(TEXTS[:2] if rng.random() < 0.8 or plain else TEXTS)
    odd = rng.random()
    if plain or odd < 0.94:
        return {names[0]: role, names[1]: text}
    return rng.choice(
        [{names[0]: role}, {names[0]: role, names[1]: [text]}, {names[0]: role, names[1]: text, "weight": 0}, 3]
    )


def record(rng):
    plain = rng.random() < 0.3
    key, names = rng.choice([("conversations", ("from", "value")), ("messages", ("role", "content"))])
    turns = [turn(rng, number, names, plain) for number in range(rng.choice([2, 2, 2, 4, 4, 1, 3, 0]))]
    found = {key: turns if rng.random() < 0.97 else rng.choice([None, {}, "text"])}
    if rng.random() < 0.4:
        found["image"] = rng.choice(IMAGES[:2] if plain else IMAGES)
        if turns and isinstance(turns[0], dict) and rng.random() < 0.7:
            turns[0] = {**turns[0], names[1]: "<image>\nWhat?"}
    for name, values in MORE.items():
        if rng.random() < (0.3 if name in ("id", "source") else 0.05):
            found[name] = rng.choice(values)
    return found


def test_a_glance_finds_what_parsing_finds():
    rng, seen = random.Random(0), 0
    keys: dict = {}
    for number in range(6000):
        one = record(rng)
        if (found := glance(one)) is None:
            continue
        seen += 1
        sample = parse_record(number, one)  # which may not refuse it
        texts = "\n".join(turn.text for turn in sample.turns).split("<image>")
        said = "".join([texts[0], *(text.removeprefix("\n") for text in texts[1:])]).strip()
        assert found[:2] == (sample.source, len(sample.images)), one
        keys.setdefault((sample.images, said), set()).add(found.key)
    assert seen > 1500
    # one key for what is shown and said, and no two that share it
    assert all(len(own) == 1 for own in keys.values()) and len(set.union(*keys.values())) == len(keys) > 20


@pytest.mark.parametrize("one", ["text", None, [], {}, {"conversations": []}, {"instruction": "a", "output": "b"}])
def test_what_is_not_plain_is_left_alone(one):
    assert glance(one) is None
