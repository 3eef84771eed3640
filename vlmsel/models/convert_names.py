"""How checkpoints of LLaVA's kind name their weights, as a table of prefixes; a weight belongs to one of three parts.

    part        own name                 transformers, on disk            transformers 5, in memory      LLaVA-1.5
    vision      as CLIPVisionModel       vision_tower.vision_model.       model.vision_tower.            model.vision_tower.vision_tower.vision_model.
    projector   0.weight, 2.weight, ...  multi_modal_projector.linear_1.  model.multi_modal_projector.…  model.mm_projector.0.
    language    model.…, lm_head.weight  language_model.model.            model.language_model.          model.
                                         language_model.lm_head.          lm_head.                       lm_head.

Prismatic files hold one table per part, `projector.0.weight` in that of the projector and `llm.model.…` in that of the
language model.
"""  # noqa: E501

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

Part = Literal["vision", "projector", "language"]
Layout = Literal["llava-hf", "llava-hf-5", "llava-1.5"]

# pattern -> part, what it becomes; the first that fits counts
READ: tuple[tuple[str, Part, str], ...] = (
    (r"(model\.)?vision_tower\.(vision_tower\.)?(vision_model\.)?", "vision", ""),
    (r"(model\.)?multi_modal_projector\.linear_1\.", "projector", "0."),
    (r"(model\.)?multi_modal_projector\.linear_2\.", "projector", "2."),
    (r"(model\.)?mm_projector\.", "projector", ""),
    (r"(projector\.)+(?=\d)", "projector", ""),
    (r"language_model\.lm_head\.", "language", "lm_head."),
    (r"language_model\.model\.", "language", "model."),
    (r"model\.language_model\.", "language", "model."),
    (r"llm\.", "language", ""),
    (r"(?=lm_head\.|model\.(embed_tokens|layers|norm)\.)", "language", ""),
)
WRITE: dict[Layout, dict[str, str]] = {
    "llava-hf": {
        "vision": "vision_tower.vision_model.",
        "0.": "multi_modal_projector.linear_1.",
        "2.": "multi_modal_projector.linear_2.",
        "model.": "language_model.model.",
        "lm_head.": "language_model.lm_head.",
    },
    "llava-hf-5": {
        "vision": "model.vision_tower.",
        "0.": "model.multi_modal_projector.linear_1.",
        "2.": "model.multi_modal_projector.linear_2.",
        "model.": "model.language_model.",
        "lm_head.": "lm_head.",
    },
    "llava-1.5": {
        "vision": "model.vision_tower.vision_tower.vision_model.",
        "0.": "model.mm_projector.0.",
        "2.": "model.mm_projector.2.",
        "model.": "model.",
        "lm_head.": "lm_head.",
    },
}
COUNTERS = ("position_ids", "rotary_emb.inv_freq")  # buffers in older files, made anew by every model


def part_of(name: str) -> tuple[Part, str]:
    """Return the part that a weight belongs to, and its name there.

    >>> part_of("model.mm_projector.2.bias"), part_of("base_model.model.model.mm_projector.0.weight")
    (('projector', '2.bias'), ('projector', '0.weight'))
    >>> part_of("language_model.model.norm.weight")
    ('language', 'model.norm.weight')

    Raises:
        ValueError: no layout has such a name.
    """
    plain = name.removeprefix("base_model.model.")
    if plain.startswith(("model.model.mm_projector", "model.model.vision_tower")):
        plain = plain.removeprefix("model.")
    for pattern, part, own in READ:
        if found := re.match(pattern, plain):
            return part, own + plain[found.end() :]
    raise ValueError(f"{name} is no weight of a LLaVA model as transformers, LLaVA-1.5 or Prismatic name them")


def is_counter(name: str) -> bool:
    """Tell whether a name is that of a buffer which is made anew and not read."""
    return name.endswith(COUNTERS)


def written(part: Part, name: str, layout: Layout) -> str:
    """Return how a layout calls a weight of a part.

    >>> written("projector", "2.bias", "llava-hf"), written("language", "lm_head.weight", "llava-hf-5")
    ('multi_modal_projector.linear_2.bias', 'lm_head.weight')

    Raises:
        ValueError: the layout has no place for it.
    """
    prefixes = WRITE[layout]
    if part == "vision":
        return prefixes["vision"] + name
    places = ("0.", "2.") if part == "projector" else ("model.", "lm_head.")
    for own in places:
        if name.startswith(own):
            return prefixes[own] + name.removeprefix(own)
    raise ValueError(f"{layout} has no place for {name} of the {part}")


def check_complete(projector: Iterable[str]) -> None:
    """Refuse a projector other than two linear maps with biases.

    Raises:
        ValueError: names what there is.
    """
    expected = ["0.bias", "0.weight", "2.bias", "2.weight"]
    if (found := sorted(projector)) != expected:
        raise ValueError(
            f"its projector holds {', '.join(found) or 'nothing'}; two linear maps with biases ({', '.join(expected)}) "
            "are what LLaVA has"
        )
