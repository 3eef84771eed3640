"""Text-only tasks beside the embedded world: sums, spelling, opposites, small talk.

They stand for the part of a real instruction pool that has nothing to do with pictures.
"""

from __future__ import annotations

import random

_OPPOSITES = "hot cold, big small, left right, top bottom, push pull, north south, day night".split(", ")
_TALK = (
    ("How are you today?", "I am fine, thank you."),
    ("Tell me a short story.", "A cat sat on a mat and slept all day."),
    ("Give me some advice.", "Drink water and go for a walk."),
    ("Write a line about the sea.", "The sea is wide and never still."),
    ("What should I cook tonight?", "Cook rice with beans and some bread."),
    ("Say something kind.", "You are doing well, keep going."),
)
_NOUNS = ("cat", "mat", "sea", "rice", "walk", "story", "line", "water", "night", "day")


def text_task(rng: random.Random) -> tuple[str, str]:
    """Draw a text-only (question, answer)."""
    kind = rng.randrange(4)
    if kind == 0:
        a, b = rng.randint(1, 20), rng.randint(1, 20)
        return f"What is {a} plus {b}?", str(a + b)
    if kind == 1:
        noun = rng.choice(_NOUNS)
        return f"Spell the word {noun}.", " ".join(noun)
    if kind == 2:
        word, opposite = rng.choice(_OPPOSITES).split()
        return f"What is the opposite of {word}?", opposite
    return rng.choice(_TALK)
