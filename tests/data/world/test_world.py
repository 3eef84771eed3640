import json
import random
from collections import Counter

import numpy as np
import pytest

from vlmsel.data.world.files import (
    DUPLICATE_SHARE,
    MISMATCH_SHARE,
    SOURCES,
    TASKS,
    WRONG_SHARE,
    WorldSizes,
    draw_pool,
    write_world,
)
from vlmsel.data.world.questions import FAMILIES, ask, presence
from vlmsel.data.world.render import render
from vlmsel.data.world.scenes import CANVAS, COLORS, SHAPES, Scene, Thing, describe, draw_scene

SMALL = WorldSizes(captions=6, pool=40, target=5, questions=12)


def scenes(count, seed=0):
    rng = random.Random(seed)
    return [draw_scene(rng) for _ in range(count)]


def test_scenes_are_legal():
    for scene in scenes(300):
        cells = [(t.row, t.column) for t in scene.things]
        assert 1 <= len(cells) == len(set(cells)) <= 4
        assert all(row != scene.sign_row for row, _ in cells)
        assert (scene.word is None) == (scene.sign_row is None)


def test_same_seed_same_scene():
    assert scenes(5, 3) == scenes(5, 3) != scenes(5, 4)


def test_render_shows_each_thing_in_its_cell_and_color():
    scene = Scene((Thing("big", "red", "square", 1, 2),), None, None, 60)
    pixels = np.asarray(render(scene))
    assert pixels.shape == (CANVAS, CANVAS, 3)
    assert tuple(pixels[24, 40]) == COLORS["red"]
    assert tuple(pixels[8, 8]) == (60, 60, 60)


def test_every_shape_and_word_gives_another_picture():
    pictures = {render(Scene((Thing("big", "red", s, 0, 0),), None, None, 60)).tobytes() for s in SHAPES}
    pictures |= {render(Scene((), w, 2, 60)).tobytes() for w in ("stop", "shop")}
    assert len(pictures) == len(SHAPES) + 2


def _truth(scene, asked):
    """Answer a presence question by looking at the scene."""
    return "yes" if any(f"a {t.name} in" in asked.question for t in scene.things) else "no"


def test_presence_answers_are_true():
    rng = random.Random(1)
    for scene in scenes(200):
        asked = presence(scene, rng)
        assert asked.answer == _truth(scene, asked) != asked.wrong


@pytest.mark.parametrize("style", FAMILIES)
def test_questions_have_a_tempting_wrong_answer(style):
    rng = random.Random(2)
    asked = [a for scene in scenes(100) if (a := ask(style, scene, rng))]
    assert len(asked) > 30
    assert all(a.answer != a.wrong for a in asked)


def test_yes_and_no_are_balanced():
    rng = random.Random(3)
    answers = Counter(presence(scene, rng).answer for scene in scenes(1000))
    assert abs(answers["yes"] - 500) < 60


def test_relations_are_true():
    scene = Scene((Thing("big", "red", "circle", 0, 0), Thing("big", "blue", "square", 2, 2)), None, None, 60)
    rng, seen = random.Random(4), {}
    for _ in range(200):
        asked = ask("gqa", scene, rng)
        if asked and asked.family == "relation":
            seen[asked.question] = asked.answer
    assert seen["Does the red circle lie to the left of the blue square?"] == "yes"
    assert seen["Does the red circle lie below the blue square?"] == "no"


def test_describe_names_everything():
    for scene in scenes(50):
        text = describe(scene)
        assert all(f"{t.size} {t.name} at the {t.place}" in text for t in scene.things)
        assert scene.word is None or text.endswith(f"that says {scene.word}.")


def test_pool_has_the_stated_shares():
    items = draw_pool(6000, random.Random(0))
    sources = Counter(item.source for item, _ in items)
    assert all(abs(sources[s] / 6000 - share / 100) < 0.02 for s, share in SOURCES.items())
    with_image = [item for item, _ in items if item.scene is not None]
    flaws = Counter(item.flaw for item in with_image)
    assert abs(flaws["wrong answer"] / len(with_image) - WRONG_SHARE) < 0.02
    assert abs(flaws["other image"] / len(with_image) - MISMATCH_SHARE) < 0.01
    assert abs(sum(repeated for _, repeated in items) / 6000 - DUPLICATE_SHARE) < 0.02


def test_files_are_reproducible_and_complete(tmp_path):
    for name in ("a", "b"):
        write_world(tmp_path / name, SMALL, seed=5)
    first, second = (sorted(p for p in (tmp_path / n).rglob("*") if p.is_file()) for n in ("a", "b"))
    assert [p.relative_to(tmp_path / "a") for p in first] == [p.relative_to(tmp_path / "b") for p in second]
    assert all(x.read_bytes() == y.read_bytes() for x, y in zip(first, second, strict=True))
    pool = json.loads((tmp_path / "a/pool.json").read_text())
    assert len(pool) == SMALL.pool
    assert all((tmp_path / "a/images" / r["image"]).is_file() for r in pool if "image" in r)
    assert all((tmp_path / f"a/targets/{task}.json").is_file() for task in TASKS)
