"""Questions about scenes of the embedded world, in the styles of VQAv2, GQA, POPE and TextVQA.

Each family is a function `(scene, rng) -> Asked | None`; None where the scene does not allow such a question without
ambiguity. Yes/no questions are asked so that both answers come about equally often, as in the balanced originals.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from vlmsel.data.world import COLORS, COLUMNS, ROWS, SHAPES, SIZES, WORDS, Scene, Thing


@dataclass(frozen=True)
class Asked:
    """A question, its true answer, a tempting wrong one of the same type, and the family's name."""

    question: str
    answer: str
    wrong: str
    family: str


Family = Callable[[Scene, random.Random], "Asked | None"]


def _other(rng: random.Random, options: object, right: str) -> str:
    return rng.choice([option for option in options if option != right])  # type: ignore[attr-defined]


def _yes_no(rng: random.Random, question: str, truth: bool, family: str) -> Asked:
    return Asked(question, *(("yes", "no") if truth else ("no", "yes")), family)


def _unique(scene: Scene, rng: random.Random, *keys: str) -> Thing | None:
    """Draw a thing that is the only one with its words for `keys`."""
    alone = [t for t in scene.things if len(scene.having(**{key: getattr(t, key) for key in keys})) == 1]
    return rng.choice(alone) if alone else None


# VQAv2: open, number and yes/no questions


def color_of(scene: Scene, rng: random.Random) -> Asked | None:
    thing = _unique(scene, rng, "shape")
    if thing is None:
        return None
    return Asked(f"What color is the {thing.shape}?", thing.color, _other(rng, COLORS, thing.color), "color")


def shape_of(scene: Scene, rng: random.Random) -> Asked | None:
    thing = _unique(scene, rng, "color")
    if thing is None:
        return None
    return Asked(f"What shape is the {thing.color} object?", thing.shape, _other(rng, SHAPES, thing.shape), "shape")


def size_of(scene: Scene, rng: random.Random) -> Asked | None:
    thing = _unique(scene, rng, "color", "shape")
    if thing is None:
        return None
    return Asked(f"What size is the {thing.name}?", thing.size, _other(rng, SIZES, thing.size), "size")


def count_things(scene: Scene, rng: random.Random) -> Asked:
    if rng.random() < 0.5:
        question, number = "How many objects are there?", len(scene.things)
    else:
        color = rng.choice([t.color for t in scene.things] + list(COLORS)[:2])
        question, number = f"How many {color} objects are there?", len(scene.having(color=color))
    return Asked(question, str(number), _other(rng, "01234", str(number)), "count")


def is_color(scene: Scene, rng: random.Random) -> Asked | None:
    thing = _unique(scene, rng, "shape")
    if thing is None:
        return None
    truth = rng.random() < 0.5
    color = thing.color if truth else _other(rng, COLORS, thing.color)
    return _yes_no(rng, f"Is the {thing.shape} {color}?", truth, "is_color")


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
    return _yes_no(rng, f"Is the {first.name} {rng.choice(fitting)} the {second.name}?", truth, "relation")


def color_at(scene: Scene, rng: random.Random) -> Asked:
    thing = rng.choice(scene.things)
    question = f"What color is the object at the {thing.place}?"
    return Asked(question, thing.color, _other(rng, COLORS, thing.color), "color_at")


def shape_at(scene: Scene, rng: random.Random) -> Asked:
    thing = rng.choice(scene.things)
    question = f"What shape is the object at the {thing.place}?"
    return Asked(question, thing.shape, _other(rng, SHAPES, thing.shape), "shape_at")


def choose_color(scene: Scene, rng: random.Random) -> Asked | None:
    thing = _unique(scene, rng, "shape")
    if thing is None:
        return None
    wrong = _other(rng, COLORS, thing.color)
    pair = rng.sample([thing.color, wrong], 2)
    return Asked(f"Is the {thing.shape} {pair[0]} or {pair[1]}?", thing.color, wrong, "choose")


def side_of(scene: Scene, rng: random.Random) -> Asked | None:
    thing = _unique(scene, rng, "color", "shape")
    if thing is None:
        return None
    truth = rng.random() < 0.5
    names, value = (COLUMNS, thing.column) if rng.random() < 0.5 else (ROWS, thing.row)
    place = names[value] if truth else _other(rng, names, names[value])
    return _yes_no(rng, f"Is the {thing.name} at the {place}?", truth, "side")


# POPE: presence of an object; TextVQA: the word on the sign


def presence(scene: Scene, rng: random.Random) -> Asked:
    if rng.random() < 0.5:
        return ask_presence(rng.choice(scene.things).name, True)
    present = {t.name for t in scene.things}
    near = [f"{c} {s}" for c in COLORS for s in SHAPES if any(t.color == c or t.shape == s for t in scene.things)]
    anything = [f"{c} {s}" for c in COLORS for s in SHAPES]
    return ask_presence(rng.choice([n for n in rng.choice([near, anything]) if n not in present]), False)


def ask_presence(name: str, truth: bool) -> Asked:
    return Asked(f"Is there a {name} in the image?", *(("yes", "no") if truth else ("no", "yes")), "presence")


_READINGS = ("What does the sign say?", "What word is on the sign?", "What is written on the sign?")


def reading(scene: Scene, rng: random.Random) -> Asked | None:
    if scene.word is None:
        return None
    return Asked(rng.choice(_READINGS), scene.word, _other(rng, WORDS, scene.word), "reading")


# Instruction data beside the four benchmarks


def where(scene: Scene, rng: random.Random) -> Asked | None:
    thing = _unique(scene, rng, "color", "shape")
    if thing is None:
        return None
    wrong = f"{_other(rng, ROWS, ROWS[thing.row])} {COLUMNS[thing.column]}"
    return Asked(f"Where is the {thing.name}?", thing.place, wrong, "where")


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
