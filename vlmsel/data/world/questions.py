"""Questions about scenes of the embedded world, in the styles of VQAv2, GQA, POPE and TextVQA.

Each family is a function `(scene, rng) -> Asked | None`; None where the scene does not allow such a question without
ambiguity. Yes/no questions are asked so that both answers come about equally often, as in the balanced originals.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import wraps

from vlmsel.data.world.scenes import COLORS, COLUMNS, ROWS, SHAPES, SIZES, WORDS, Scene, Thing

# How the pool, the targets and the benchmarks ask. The tiny language model was pretrained on other words, but for
# POPE's question, whose wording is official: a model that had been pretrained on the benchmarks' own questions would
# answer them before any tuning, there would be little left to select data for, and the largest gradients in the pool
# would be those of its wrong answers.
WORDINGS: dict[str, tuple[str, ...]] = {
    "color": ("Which color does the {shape} have?",),
    "shape": ("Name the form of the {color} thing.",),
    "size": ("How large is the {name}?",),
    "count_all": ("What number of things can you see?",),
    "count_color": ("What number of {color} things can you see?",),
    "is_color": ("Does the {shape} have the color {color}?",),
    "relation": ("Does the {first} lie {relation} the {second}?",),
    "color_at": ("Which color can you see at the {place}?",),
    "shape_at": ("Which form can you see at the {place}?",),
    "choose": ("Which color has the {shape}, {one} or {two}?",),
    "side": ("Can you find the {name} at the {side}?",),
    "presence": ("Is there a {name} in the image?",),
    "reading": ("Read the sign.", "Which word can you see?", "What text is shown here?"),
    "where": ("Point to the {name}.",),
}
_KINDS: dict[str, Iterable[str]] = {"color": COLORS, "shape": SHAPES, "size": SIZES}


@dataclass(frozen=True)
class Asked:
    """A question, its true answer and a tempting wrong one of the same type; `wording` and `way` say which of
    `WORDINGS` it is put in, with which `words`."""

    question: str
    answer: str
    wrong: str
    wording: str
    way: int
    words: Mapping[str, str]

    @property
    def family(self) -> str:
        """The family's name."""
        return "count" if self.wording.startswith("count") else self.wording


Family = Callable[[Scene, random.Random], Asked | None]


def _other(rng: random.Random, options: Iterable[str], right: str) -> str:
    return rng.choice([option for option in options if option != right])


def _asked(rng: random.Random, answer: str, wrong: str, wording: str, **words: str) -> Asked:
    way = rng.randrange(len(WORDINGS[wording]))
    return Asked(WORDINGS[wording][way].format(**words), answer, wrong, wording, way, words)


def _yes_no(rng: random.Random, truth: bool, wording: str, **words: str) -> Asked:
    return _asked(rng, *(("yes", "no") if truth else ("no", "yes")), wording, **words)


def about(*keys: str) -> Callable[[Callable[[Thing, random.Random], Asked]], Family]:
    """Make a family of a question about a thing: one that is the only one with its words for `keys`, if there is."""

    def family(question: Callable[[Thing, random.Random], Asked]) -> Family:
        @wraps(question)
        def draw(scene: Scene, rng: random.Random) -> Asked | None:
            alone = [t for t in scene.things if len(scene.having(**{key: getattr(t, key) for key in keys})) == 1]
            return question(rng.choice(alone), rng) if alone else None

        return draw

    return family


def lookup(kind: str, wording: str, shown: str, *keys: str) -> Family:
    """Make a family that asks for a thing's color, shape or size and names it by its word for `shown`."""

    def question(thing: Thing, rng: random.Random) -> Asked:
        right = getattr(thing, kind)
        return _asked(rng, right, _other(rng, _KINDS[kind], right), wording, **{shown: getattr(thing, shown)})

    return about(*keys)(question)


# VQAv2: open, number and yes/no questions

color_of = lookup("color", "color", "shape", "shape")
shape_of = lookup("shape", "shape", "color", "color")
size_of = lookup("size", "size", "name", "color", "shape")


def count_things(scene: Scene, rng: random.Random) -> Asked:
    every, color = rng.random() < 0.5, rng.choice([t.color for t in scene.things] + list(COLORS)[:2])
    number = str(len(scene.things if every else scene.having(color=color)))
    return _asked(rng, number, _other(rng, "01234", number), "count_all" if every else "count_color", color=color)


@about("shape")
def is_color(thing: Thing, rng: random.Random) -> Asked:
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


color_at = lookup("color", "color_at", "place", "row", "column")
shape_at = lookup("shape", "shape_at", "place", "row", "column")


@about("shape")
def choose_color(thing: Thing, rng: random.Random) -> Asked:
    wrong = _other(rng, COLORS, thing.color)
    one, two = rng.sample([thing.color, wrong], 2)
    return _asked(rng, thing.color, wrong, "choose", shape=thing.shape, one=one, two=two)


@about("color", "shape")
def side_of(thing: Thing, rng: random.Random) -> Asked:
    truth = rng.random() < 0.5
    names, value = (COLUMNS, thing.column) if rng.random() < 0.5 else (ROWS, thing.row)
    side = names[value] if truth else _other(rng, names, names[value])
    return _yes_no(rng, truth, "side", name=thing.name, side=side)


# POPE: presence of an object; TextVQA: the word on the sign


def presence(scene: Scene, rng: random.Random) -> Asked:
    if rng.random() < 0.5:
        return ask_presence(rng, rng.choice(scene.things).name, True)
    kinds = [scene.absent(scene.near_names()), scene.absent()]
    return ask_presence(rng, rng.choice(rng.choice(kinds)), False)


def ask_presence(rng: random.Random, name: str, truth: bool) -> Asked:
    return _yes_no(rng, truth, "presence", name=name)


def reading(scene: Scene, rng: random.Random) -> Asked | None:
    if scene.word is None:
        return None
    return _asked(rng, scene.word, _other(rng, WORDS, scene.word), "reading")


# Instruction data beside the four benchmarks


@about("color", "shape")
def where(thing: Thing, rng: random.Random) -> Asked:
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
