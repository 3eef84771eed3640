"""Questions about scenes of the embedded world, in the styles of VQAv2, GQA, POPE and TextVQA.

Each family is a function `(scene, rng) -> Asked | None`; None where the scene does not allow such a question without
ambiguity. Yes/no questions are asked so that both answers come about equally often, as in the balanced originals.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from vlmsel.data.world.scenes import COLORS, COLUMNS, ROWS, SHAPES, SIZES, WORDS, Scene, Thing
from vlmsel.data.world.wording import BENCHMARK, PLAIN


@dataclass(frozen=True)
class Asked:
    """A question, its true answer, a tempting wrong one of the same type, the family's name, and the question as the
    language model's pretraining text words it."""

    question: str
    answer: str
    wrong: str
    family: str
    plain: str


Family = Callable[[Scene, random.Random], "Asked | None"]


def _other(rng: random.Random, options: object, right: str) -> str:
    return rng.choice([option for option in options if option != right])  # type: ignore[attr-defined]


def _asked(rng: random.Random, answer: str, wrong: str, wording: str, family: str = "", **words: str) -> Asked:
    index = rng.randrange(len(BENCHMARK[wording]))
    question, plain = (way[wording][index].format(**words) for way in (BENCHMARK, PLAIN))
    return Asked(question, answer, wrong, family or wording, plain)


def _yes_no(rng: random.Random, truth: bool, family: str, **words: str) -> Asked:
    return _asked(rng, *(("yes", "no") if truth else ("no", "yes")), family, **words)


def _unique(scene: Scene, rng: random.Random, *keys: str) -> Thing | None:
    """Draw a thing that is the only one with its words for `keys`."""
    alone = [t for t in scene.things if len(scene.having(**{key: getattr(t, key) for key in keys})) == 1]
    return rng.choice(alone) if alone else None


# VQAv2: open, number and yes/no questions


def color_of(scene: Scene, rng: random.Random) -> Asked | None:
    thing = _unique(scene, rng, "shape")
    if thing is None:
        return None
    return _asked(rng, thing.color, _other(rng, COLORS, thing.color), "color", shape=thing.shape)


def shape_of(scene: Scene, rng: random.Random) -> Asked | None:
    thing = _unique(scene, rng, "color")
    if thing is None:
        return None
    return _asked(rng, thing.shape, _other(rng, SHAPES, thing.shape), "shape", color=thing.color)


def size_of(scene: Scene, rng: random.Random) -> Asked | None:
    thing = _unique(scene, rng, "color", "shape")
    if thing is None:
        return None
    return _asked(rng, thing.size, _other(rng, SIZES, thing.size), "size", name=thing.name)


def count_things(scene: Scene, rng: random.Random) -> Asked:
    every, color = rng.random() < 0.5, rng.choice([t.color for t in scene.things] + list(COLORS)[:2])
    number = str(len(scene.things if every else scene.having(color=color)))
    wording = "count_all" if every else "count_color"
    return _asked(rng, number, _other(rng, "01234", number), wording, "count", color=color)


def is_color(scene: Scene, rng: random.Random) -> Asked | None:
    thing = _unique(scene, rng, "shape")
    if thing is None:
        return None
    truth = rng.random() < 0.5
    color = thing.color if truth else _other(rng, COLORS, thing.color)
    return _yes_no(rng, truth, "is_color", shape=thing.shape, color=color)


# GQA: spatial and compositional questions

_RELATIONS: dict[str, Callable[[Thing, Thing], bool]] = {
    "to the left of": lambda a, b: a.column < b.column,
    "to the right of": lambda a, b: a.column > b.column,
    "above": lambda a, b: a.row < b.row,
    "below": lambda a, b: a.row > b.row,
}


def relation(scene: Scene, rng: random.Random) -> Asked | None:
    names = [t.name for t in scene.things]
    alone = [t for t in scene.things if names.count(t.name) == 1]
    if len(alone) < 2:
        return None
    first, second = rng.sample(alone, 2)
    truth = rng.random() < 0.5
    fitting = [words for words, holds in _RELATIONS.items() if holds(first, second) == truth]
    words = {"first": first.name, "relation": rng.choice(fitting), "second": second.name}
    return _yes_no(rng, truth, "relation", **words)


def color_at(scene: Scene, rng: random.Random) -> Asked:
    thing = rng.choice(scene.things)
    return _asked(rng, thing.color, _other(rng, COLORS, thing.color), "color_at", place=thing.place)


def shape_at(scene: Scene, rng: random.Random) -> Asked:
    thing = rng.choice(scene.things)
    return _asked(rng, thing.shape, _other(rng, SHAPES, thing.shape), "shape_at", place=thing.place)


def choose_color(scene: Scene, rng: random.Random) -> Asked | None:
    thing = _unique(scene, rng, "shape")
    if thing is None:
        return None
    wrong = _other(rng, COLORS, thing.color)
    pair = rng.sample([thing.color, wrong], 2)
    return _asked(rng, thing.color, wrong, "choose", shape=thing.shape, one=pair[0], two=pair[1])


def side_of(scene: Scene, rng: random.Random) -> Asked | None:
    thing = _unique(scene, rng, "color", "shape")
    if thing is None:
        return None
    truth = rng.random() < 0.5
    names, value = (COLUMNS, thing.column) if rng.random() < 0.5 else (ROWS, thing.row)
    place = names[value] if truth else _other(rng, names, names[value])
    return _yes_no(rng, truth, "side", name=thing.name, side=place)


# POPE: presence of an object; TextVQA: the word on the sign


def presence(scene: Scene, rng: random.Random) -> Asked:
    if rng.random() < 0.5:
        return ask_presence(rng, rng.choice(scene.things).name, True)
    present = {t.name for t in scene.things}
    near = [f"{c} {s}" for c in COLORS for s in SHAPES if any(t.color == c or t.shape == s for t in scene.things)]
    anything = [f"{c} {s}" for c in COLORS for s in SHAPES]
    return ask_presence(rng, rng.choice([n for n in rng.choice([near, anything]) if n not in present]), False)


def ask_presence(rng: random.Random, name: str, truth: bool) -> Asked:
    return _yes_no(rng, truth, "presence", name=name)


def reading(scene: Scene, rng: random.Random) -> Asked | None:
    if scene.word is None:
        return None
    return _asked(rng, scene.word, _other(rng, WORDS, scene.word), "reading")


# Instruction data beside the four benchmarks


def where(scene: Scene, rng: random.Random) -> Asked | None:
    thing = _unique(scene, rng, "color", "shape")
    if thing is None:
        return None
    wrong = f"{_other(rng, ROWS, ROWS[thing.row])} {COLUMNS[thing.column]}"
    return _asked(rng, thing.place, wrong, "where", name=thing.name)


FAMILIES: dict[str, tuple[Family, ...]] = {
    "vqav2": (color_of, shape_of, size_of, count_things, is_color),
    "gqa": (relation, color_at, shape_at, choose_color, side_of),
    "pope": (presence,),
    "textvqa": (reading,),
    "region": (where,),
}


def ask(style: str, scene: Scene, rng: random.Random) -> Asked | None:
    """Ask one question in the style of `vqav2`, `gqa`, `pope`, `textvqa` or `region`; None if the scene allows none."""
    asked = [question for family in FAMILIES[style] if (question := family(scene, rng)) is not None]
    return rng.choice(asked) if asked else None
