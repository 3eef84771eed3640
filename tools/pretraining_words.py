"""What the tiny backbones learn from beside pictures: what each patch of a scene shows, and questions in other words.

`WORDINGS` differ from those in which the pool, the targets and the benchmarks ask (`vlmsel.data.world.questions`), but
for POPE's, whose wording is official.
"""

from __future__ import annotations

from vlmsel.data.world import questions
from vlmsel.data.world.questions import Asked
from vlmsel.data.world.render import LETTER, letter_left
from vlmsel.data.world.scenes import CANVAS, CELL, SIZES, Scene, Thing

WORDINGS: dict[str, tuple[str, ...]] = {
    "color": ("What color is the {shape}?",),
    "shape": ("What shape is the {color} object?",),
    "size": ("What size is the {name}?",),
    "count_all": ("How many objects are there?",),
    "count_color": ("How many {color} objects are there?",),
    "is_color": ("Is the {shape} {color}?",),
    "relation": ("Is the {first} {relation} the {second}?",),
    "color_at": ("What color is the object at the {place}?",),
    "shape_at": ("What shape is the object at the {place}?",),
    "choose": ("Is the {shape} {one} or {two}?",),
    "side": ("Is the {name} at the {side}?",),
    "presence": questions.WORDINGS["presence"],
    "reading": ("What does the sign say?", "What word is on the sign?", "What is written on the sign?"),
    "where": ("Where is the {name}?",),
}


def plain(asked: Asked) -> str:
    """Put a question as the pretraining text does."""
    return WORDINGS[asked.wording][asked.way].format(**asked.words)


def patch_words(scene: Scene, patch: int = 8) -> list[tuple[str, ...]]:
    """Return the words that each patch shows, in raster order: the text that corresponds to a patch token.

    Args:
        scene: what is drawn.
        patch: side of a patch in pixels; divides 48.

    Returns:
        One tuple per patch: `(size, color, shape)` where a thing covers at least an eighth of the patch,
        `("sign", word)` or `("sign", word, letter)` on a sign, and `()` on bare background.
    """
    side = CANVAS // patch
    words: list[tuple[str, ...]] = [()] * side**2
    for index in range(side**2):
        box = (index % side * patch, index // side * patch)
        for thing in scene.things:
            if covered(thing, box, patch) >= patch**2 / 8:
                words[index] = (thing.size, thing.color, thing.shape)
        if scene.sign_row is not None and box[1] // CELL == scene.sign_row:
            words[index] = sign_words(scene.word or "", box[0])
    return words


def covered(thing: Thing, box: tuple[int, int], patch: int) -> float:
    """Count the pixels of a patch that a thing's square covers."""
    half = SIZES[thing.size] / 2
    overlap = [min(c + half, b + patch) - max(c - half, b) for c, b in zip(thing.center, box, strict=True)]
    return max(overlap[0], 0) * max(overlap[1], 0)


def sign_words(word: str, left: int) -> tuple[str, ...]:
    """Say what a sign shows from the column `left` on."""
    index = (left - letter_left(word, 0)) // LETTER
    return ("sign", word, word[index]) if 0 <= index < len(word) else ("sign", word)
