"""What the tiny backbones learn from: the words of each patch, and every question in other words."""

import random

import pytest

from tools.pretraining_words import WORDINGS, patch_words, plain
from vlmsel.data.world import questions
from vlmsel.data.world.scenes import Scene, Thing, draw_scene


def test_patch_words_lie_where_the_thing_is():
    words = patch_words(Scene((Thing("big", "red", "circle", 0, 0),), "tea", 2, 60))
    assert words[0] == words[1] == words[6] == words[7] == ("big", "red", "circle")
    assert words[2] == ()
    assert [w[2] for w in words[24:30] if len(w) == 3] == list("tea")


def test_there_is_another_wording_for_each():
    ways = {name: len(texts) for name, texts in questions.WORDINGS.items()}
    assert {name: len(texts) for name, texts in WORDINGS.items()} == ways
    assert [name for name in ways if set(WORDINGS[name]) & set(questions.WORDINGS[name])] == ["presence"]


@pytest.mark.parametrize("style", questions.FAMILIES)
def test_a_question_in_other_words_asks_for_the_same(style):
    rng = random.Random(0)
    asked = [one for _ in range(50) if (one := questions.ask(style, draw_scene(rng), rng)) is not None]
    assert len(asked) > 20
    for one in asked:
        text = plain(one)
        assert text.endswith("?") and (text == one.question) == (style == "pope")
        assert all(word in text for word in one.words.values() if f"{word}" in one.question)
