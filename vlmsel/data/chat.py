"""Conversations in a model's own chat template: the text, its tokens, and which of them the assistant says.

Where the template marks the assistant's words ({% generation %}) these marks are taken. Elsewhere an answer is what
one more turn adds to the prompt:

    answer k = render(turns before k and k) - render(turns before k, with the prompt for an answer)

Both must be what the whole conversation begins with, as text and as tokens, so that a model is trained behind the very
tokens that it is asked with; a template that writes earlier turns otherwise is refused. Supervised is an answer up to
the first special token behind it, which ends the turn; a template that has none ends no answer.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from vlmsel.checks import quoted
from vlmsel.data.encoding import IGNORED, Encoded, LossOn
from vlmsel.data.sample import Turn
from vlmsel.data.templates import IMAGE

CHAT = "chat"  # the name of a model's own template, among ours
ROLES = {"system": "system", "human": "user", "gpt": "assistant"}
MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")

Span = tuple[int, int]


@dataclass(frozen=True)
class Chat:
    """A conversation as text, and the letters [start, end) of what the assistant says, with the number of the turn."""

    text: str
    answers: tuple[tuple[int, Span], ...]


@dataclass(frozen=True)
class ChatEncoder:
    """Encodes conversations in a chat template.

    Attributes:
        tokenizer: a fast one, which knows the letters of its tokens.
        template: the template's source (Jinja).
        parts: whether it takes messages as lists of texts and images, not as one text.
    """

    tokenizer: Any
    template: str
    parts: bool = False

    @cached_property
    def special(self) -> frozenset[int]:
        """The ids of special tokens, of which an unknown letter is none."""
        added = self.tokenizer.added_tokens_decoder
        return frozenset(i for i, token in added.items() if token.special) - {self.tokenizer.unk_token_id}

    @cached_property
    def _spelt(self) -> re.Pattern[str]:
        names = [self.tokenizer.convert_ids_to_tokens(i) for i in sorted(self.special)]
        return re.compile("|".join(re.escape(name) for name in names) or r"(?!)")

    def encode(self, turns: Sequence[Turn], max_length: int | None = None, loss_on: LossOn = "answers") -> Encoded:
        """Turn a conversation without images into ids and labels; what is longer than `max_length` is cut at the end.

        Raises:
            ValueError: the template cannot take it, or nothing supervised is left. The message is the reason to leave
                the sample out.
        """
        chat = self.chat(turns, 0)
        ids, offsets = self.tokens(chat.text)
        ids, labels = ids[:max_length], self.labels(ids, offsets, chat, loss_on)[:max_length]
        require_supervised(labels, max_length)
        return Encoded(ids, labels, 0)

    def chat(self, turns: Sequence[Turn], images: int) -> Chat:
        """Write a conversation about `images` images, whose markers stand in it, and find its answers.

        Raises:
            ValueError: the turns do not alternate, spell a special token, have other markers than images, or the
                template does not write answers where it asks for them; names the turn.
        """
        self._check(turns, images)
        messages = [self._message(turn, images) for turn in turns]
        asked = [place for place, turn in enumerate(turns) if turn.role == "gpt"]
        if MARKED.search(self.template):
            text, spans = self._rendered(messages, marks=True)
            if len(spans) != len(asked):
                raise ValueError(f"the chat template marks {len(spans)} answers of {len(asked)}")
            return Chat(text, tuple(zip((place + 1 for place in asked), spans, strict=True)))
        text = self._rendered(messages)[0]
        found = Chat(text, tuple((place + 1, self._answer(messages, place, text)) for place in asked))
        self._check_tokens(found)
        return found

    def _answer(self, messages: Sequence[Any], place: int, text: str) -> Span:
        before = self._rendered(messages[:place], prompt=True)[0]
        through = text if place + 1 == len(messages) else self._rendered(messages[: place + 1])[0]
        if not (text.startswith(before) and text.startswith(through) and len(before) < len(through)):
            raise ValueError(
                f"the chat template does not write turn {place + 1} behind the prompt for it, or writes it otherwise "
                "where others follow; name a template with --template"
            )
        return len(before), len(through)

    def _check_tokens(self, chat: Chat) -> None:
        """Refuse answers whose tokens begin before them: a prompt would have other tokens than were trained on."""
        whole = self.tokens(chat.text)[0]
        for turn, (start, _) in chat.answers:
            before = self.tokens(chat.text[:start])[0]
            if whole[: len(before)] != before:
                raise ValueError(
                    f"the tokenizer merges the beginning of turn {turn} with the prompt before it, so that no label "
                    "can start there; name a template with --template"
                )

    def tokens(self, text: str) -> tuple[list[int], list[Span]]:
        """Return a text's ids and the letters of each; a BOS that it begins with is not put there again."""
        found = self.tokenizer(
            text, add_special_tokens=self.adds_special(text), return_offsets_mapping=True, verbose=False
        )
        return list(found["input_ids"]), [(int(start), int(end)) for start, end in found["offset_mapping"]]

    def adds_special(self, text: str) -> bool:
        """Tell whether the tokenizer may put its BOS before a text, which does not begin with one."""
        bos = self.tokenizer.bos_token
        return bos is None or not text.startswith(bos)

    def labels(
        self, ids: Sequence[int], offsets: Sequence[Span], chat: Chat, loss_on: LossOn, shown: Collection[int] = ()
    ) -> list[int]:
        """Return the ids of supervised tokens, -100 elsewhere; `offsets` and the answers are letters of one text.

        `shown` are the places of images, which are never supervised, and neither is BOS.

        Raises:
            ValueError: an answer begins within a token; names the turn.
        """
        if loss_on == "all":
            never = {self.tokenizer.bos_token_id}
            return [IGNORED if place in shown or token in never else token for place, token in enumerate(ids)]
        labels = [IGNORED] * len(ids)
        for turn, span in chat.answers:
            for place in self._own(ids, offsets, turn, span):
                labels[place] = ids[place]
        return labels

    def _own(self, ids: Sequence[int], offsets: Sequence[Span], turn: int, span: Span) -> range:
        """Return the places of an answer's tokens, and of the one that ends it."""
        start, end = span
        inside = [i for i, (first, last) in enumerate(offsets) if last > start and first < end]
        if not inside:
            return range(0)
        if offsets[inside[0]][0] < start:
            raise ValueError(f"turn {turn} begins within a token of the prompt before it; name a template")
        for place in inside:
            if ids[place] in self.special:
                return range(inside[0], place + 1)
        after = inside[-1] + 1
        closed = after < len(ids) and ids[after] in self.special
        return range(inside[0], after + closed)

    def _check(self, turns: Sequence[Turn], images: int) -> None:
        roles = [turn.role for turn in turns]
        talk = roles[1:] if roles[:1] == ["system"] else roles
        if len(talk) < 2 or len(talk) % 2 or any(role != ("human", "gpt")[i % 2] for i, role in enumerate(talk)):
            got = ", ".join(roles) or "none"
            raise ValueError(f"turns must alternate human, gpt, ... from a human one on to an answer; got {got}")
        markers = sum(turn.text.count(IMAGE) for turn in turns)
        if images and markers != images:
            raise ValueError(f"the turns hold {markers} {IMAGE} markers for {images} images; the two must be equal")
        for number, turn in enumerate(turns, 1):
            if found := self._spelt.search(turn.text.replace(IMAGE, "") if images else turn.text):
                raise ValueError(
                    f"turn {number} spells {quoted(found[0])}, which the tokenizer reads as a special token"
                )

    def _message(self, turn: Turn, images: int) -> dict[str, Any]:
        content: Any = turn.text
        if self.parts:
            content = parts(turn.text) if images else [{"type": "text", "text": turn.text}]
        return {"role": ROLES[turn.role], "content": content}

    def _rendered(self, messages: Sequence[Any], prompt: bool = False, marks: bool = False) -> tuple[str, list[Span]]:
        asked: dict[str, Any] = {"add_generation_prompt": prompt, "return_assistant_tokens_mask": marks}
        names = self.tokenizer.special_tokens_map
        try:
            found: Any = render_jinja_template([list(messages)], chat_template=self.template, **asked, **names)
        except (TemplateError, TypeError) as problem:
            raise ValueError(
                f"the chat template cannot be used ({' '.join(str(problem).split())}); name one with --template"
            ) from None
        (text,), spans = found
        return text, [(int(start), int(end)) for start, end in spans[0]] if marks else []


def parts(text: str) -> list[dict[str, str]]:
    """Cut a message at its image markers; blanks beside a marker belong to it.

    >>> parts("<image>\\nWhat?")
    [{'type': 'image'}, {'type': 'text', 'text': 'What?'}]
    """
    pieces = text.split(IMAGE)
    found: list[dict[str, str]] = []
    for number, piece in enumerate(pieces):
        if number:
            found.append({"type": "image"})
            piece = piece.lstrip()
        if number + 1 < len(pieces):
            piece = piece.rstrip()
        if piece or len(pieces) == 1:
            found.append({"type": "text", "text": piece})
    return found


def require_supervised(labels: Sequence[int], max_length: int | None) -> None:
    """Refuse a sample of whose supervised tokens nothing is left.

    Raises:
        ValueError: says so.
    """
    if all(label == IGNORED for label in labels[1:]):
        limit = "" if max_length is None else f" within {max_length} positions"
        raise ValueError(f"no supervised token is left{limit}")
