"""How questions about the embedded world are worded, in two ways.

`BENCHMARK` is how the pool, the targets and the benchmarks ask. `PLAIN` is how the text asks that the tiny language
model was pretrained on. They differ, but for POPE's question, whose wording is official: a model that had been
pretrained on the benchmarks' own questions would answer them before any tuning, there would be little left to select
data for, and the largest gradients in the pool would be those of its wrong answers.
"""

from __future__ import annotations

BENCHMARK: dict[str, tuple[str, ...]] = {
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
PLAIN: dict[str, tuple[str, ...]] = {
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
    "presence": BENCHMARK["presence"],
    "reading": ("What does the sign say?", "What word is on the sign?", "What is written on the sign?"),
    "where": ("Where is the {name}?",),
}
