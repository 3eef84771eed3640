"""Conversations as one string, for the worked cases, and their ids by LLaVA's own rule."""

from collections.abc import Callable, Sequence

from vlmsel.data.sample import Turn
from vlmsel.data.templates import IMAGE, Segment, Template


def join(segments: Sequence[Segment], bos: str = "<s>", eos: str = "</s>") -> str:
    """Write segments as one string with `bos` and `eos` spelled out, but for the BOS that opens every conversation."""
    parts = [
        (bos if segment.begins and position else "") + segment.text + (eos if segment.ends else "")
        for position, segment in enumerate(segments)
    ]
    return "".join(parts)


def training_text(template: Template, turns: Sequence[Turn], eos: str = "</s>") -> str:
    """Give the whole conversation as the model is trained on it, the first BOS left out."""
    return join(template.segments(turns), eos=eos)


def generation_prompt(template: Template, turns: Sequence[Turn]) -> str:
    """Give the prompt, BOS left out."""
    return join(template.segments(turns, prompt=True))


def per_turn_text(template: Template, turns: Sequence[Turn], eos: str = "</s>") -> list[str]:
    """Give the text of each turn on its own, answers without the blank that joins them to their prompts."""
    segments = template.segments(turns)
    return [s.text.removeprefix(template.lead if s.supervised else "") + (eos if s.ends else "") for s in segments]


def tokenize_with_images(
    prompt: str, tokenize: Callable[[str], list[int]], bos: int | None, image_id: int
) -> list[int]:
    """Tokenise by the rule of LLaVA's `tokenizer_image_token`: each piece alone, joined by `image_id`, one `bos`."""
    pieces = [tokenize(piece) for piece in prompt.split(IMAGE)]
    has_bos = bos is not None and pieces[0][:1] == [bos]
    ids = pieces[0]
    for piece in pieces[1:]:
        ids = [*ids, image_id, *piece[has_bos:]]
    return ids
