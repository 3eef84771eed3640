"""The embedded world: small scenes of coloured shapes and a sign, drawn by a seeded generator.

A scene is a 3 x 3 grid of cells of 16 pixels on a 48-pixel canvas. One to four things (size, colour, shape) lie in
different cells; in three scenes of five the top or the bottom row holds a sign with a word instead. Colours and shapes
are not equally frequent and colours prefer some shapes, so that "popular" and "adversarial" absent objects mean
something.

Everything here is a pure function of the `random.Random` that is handed in.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

CELL = 16
GRID = 3
CANVAS = CELL * GRID

COLORS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 90, 230),
    "yellow": (240, 220, 50),
    "purple": (170, 60, 190),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring")
NAMES = tuple(f"{color} {shape}" for color in COLORS for shape in SHAPES)
SIZES = {"small": 9, "big": 14}
ROWS = ("top", "center", "bottom")
COLUMNS = ("left", "middle", "right")
WORDS = (
    "stop go exit open shop cafe bank taxi bus sale "
    "park farm zoo gym spa bar inn hotel milk tea "
    "bread fish fruit books shoes toys art music north south "
    "east west push pull cash free hot cold ice menu"
).split()

SIGN_SHARE = 0.6
COUNT_WEIGHTS = {1: 2, 2: 3, 3: 3, 4: 2}
COLOR_WEIGHTS = {"red": 6, "green": 4, "blue": 5, "yellow": 3, "purple": 2, "white": 3}
SHAPE_WEIGHTS = {"circle": 5, "square": 5, "triangle": 4, "cross": 3, "ring": 3}
PREFERRED = dict(zip(COLORS, ("circle", "triangle", "square", "ring", "cross", "square"), strict=True))
PREFERENCE = 2.0  # how much likelier a colour's preferred shape is
Choice = TypeVar("Choice")


@dataclass(frozen=True)
class Thing:
    """One object: its words, its cell (row, column) and the offset of its centre from the cell's centre in pixels."""

    size: str
    color: str
    shape: str
    row: int
    column: int
    offset: tuple[int, int] = (0, 0)

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"

    @property
    def place(self) -> str:
        return f"{ROWS[self.row]} {COLUMNS[self.column]}"

    @property
    def center(self) -> tuple[int, int]:
        """Pixel (x, y) of the middle of the thing."""
        half = CELL // 2
        return self.column * CELL + half + self.offset[0], self.row * CELL + half + self.offset[1]


@dataclass(frozen=True)
class Scene:
    """Things in raster order, the sign's word and row (None without a sign), and the grey of the background."""

    things: tuple[Thing, ...]
    word: str | None
    sign_row: int | None
    background: int

    def having(self, **words: str) -> list[Thing]:
        """Return the things whose attributes equal all the given words, e.g. `scene.having(color="red")`."""
        return [thing for thing in self.things if all(getattr(thing, key) == value for key, value in words.items())]

    def absent(self, names: Sequence[str] = NAMES) -> list[str]:
        """Return those of the names that no thing here has."""
        present = {thing.name for thing in self.things}
        return [name for name in names if name not in present]

    def near_names(self) -> list[str]:
        """Return the names that share a word with a thing here."""
        words = {word for thing in self.things for word in (thing.color, thing.shape)}
        return [name for name in NAMES if not words.isdisjoint(name.split())]


def weighted(rng: random.Random, weights: Mapping[Choice, float]) -> Choice:
    """Draw a key by its weight."""
    return rng.choices(list(weights), list(weights.values()))[0]


def _draw_thing(rng: random.Random, cell: tuple[int, int]) -> Thing:
    color = weighted(rng, COLOR_WEIGHTS)
    preferred = PREFERRED[color]
    shape = weighted(rng, {s: w * (PREFERENCE if s == preferred else 1.0) for s, w in SHAPE_WEIGHTS.items()})
    size = rng.choice(list(SIZES))
    slack = (CELL - SIZES[size]) // 2
    offset = rng.randint(-slack, slack), rng.randint(-slack, slack)
    return Thing(size, color, shape, *cell, offset)


def draw_scene(rng: random.Random, count: int | None = None) -> Scene:
    """Draw one scene of `count` things, 1 to 4; that is drawn, too, when None."""
    sign = rng.random() < SIGN_SHARE
    sign_row = rng.choice((0, GRID - 1)) if sign else None
    cells = [(row, column) for row in range(GRID) for column in range(GRID) if row != sign_row]
    count = weighted(rng, COUNT_WEIGHTS) if count is None else count
    chosen = sorted(rng.sample(cells, count))
    things = tuple(_draw_thing(rng, cell) for cell in chosen)
    return Scene(things, rng.choice(WORDS) if sign else None, sign_row, rng.randint(30, 110))


def describe(scene: Scene) -> str:
    """Return the caption: things in raster order with their places, then the sign.

    >>> describe(Scene((Thing("big", "red", "circle", 0, 2),), "stop", 2, 60))
    'a big red circle at the top right, a sign at the bottom that says stop.'
    """
    parts = [f"a {thing.size} {thing.name} at the {thing.place}" for thing in scene.things]
    if scene.word is not None and scene.sign_row is not None:
        parts.append(f"a sign at the {ROWS[scene.sign_row]} that says {scene.word}")
    return ", ".join(parts) + "."
