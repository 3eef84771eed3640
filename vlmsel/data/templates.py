"""Conversation templates: turns in, pieces of text out, each marked as supervised or not.

Two families. `image_position="text"` follows LLaVA (Liu et al. 2023): the `<image>` marker of a turn moves to the front
of that turn and stands where the patches go. `image_position="after_bos"` follows Prismatic VLMs (Karamcheti et al.
2024): markers are removed from the text, whose surrounding whitespace goes too, and the patches follow the BOS token.

What differs from both: one renderer gives the training text and the prompts of evaluation, so a prompt is a prefix of
the text trained on; the blank that joins an answer to its role tag belongs to the answer, so no prompt ends in a blank;
an answer without text is the joining blank alone, in every template.

`text` is for language models without eyes: question, blank, answer, EOS, and BOS where the tokenizer itself puts one.
These are the context and the continuation of lm-evaluation-harness, id by id; blanks at a context's end belong to the
continuation there too. Every later round is like a conversation of its own.

A system turn takes the place of the template's own system text. Where a template has none it stands before the first
question, followed by a line feed; a template that leaves nothing of the questions (`plain`) leaves nothing of it.

The end and begin tokens are flags of a segment, not text, because text may hold `</s>` as letters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from vlmsel.data.sample import Turn

IMAGE = "<image>"
CURIOUS = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
HELPFUL = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)


@dataclass(frozen=True)
class Segment:
    """A piece of a conversation; `begins` puts the BOS token before it, `ends` the EOS token after it.

    The text of a supervised segment and the EOS token after it are what a model learns to say.
    """

    text: str
    supervised: bool = False
    begins: bool = False
    ends: bool = False


@dataclass(frozen=True)
class Template:
    """How turns become text: before + question + after, then lead + answer + trail, for every round.

    `opening` takes the place of `before` in the first round and holds `system`, if there is one. `closes`: EOS after
    every answer. `reopens`: BOS before every later round. `forces_bos=False`: BOS only where the tokenizer begins every
    text with it. `questions=False` leaves nothing of the questions but their image markers.
    """

    name: str
    image_position: Literal["text", "after_bos"]
    opening: str = ""
    before: str = ""
    after: str = ""
    lead: str = " "
    trail: str = ""
    closes: bool = True
    reopens: bool = False
    forces_bos: bool = True
    questions: bool = True
    system: str = ""

    def segments(self, turns: Sequence[Turn], has_images: bool = True, prompt: bool = False) -> list[Segment]:
        """Render alternating turns, from a question on, a system turn before it or not; a prompt ends in a question, at
        the place where the answer starts.

        Without images `<image>` is literal text.

        Raises:
            ValueError: the turns do not alternate, a prompt ends in an answer or another conversation has none.
        """
        system = turns[0].text.strip() if turns and turns[0].role == "system" else ""
        rounds = turns[int(bool(turns) and turns[0].role == "system") :]
        roles = [turn.role for turn in rounds]
        if not roles or any(role != ("human", "gpt")[i % 2] for i, role in enumerate(roles)):
            got = ", ".join(turn.role for turn in turns) or "none"
            raise ValueError(f"turns must alternate human, gpt, human, ... from a human one on; got {got}")
        if not self.questions and len(roles) > 2:
            raise ValueError(f"template {self.name} takes one human and one gpt turn, got {len(roles)} turns")
        if prompt and roles[-1] == "gpt":
            raise ValueError("a prompt must end in a human turn, got one that ends in an answer; leave that out")
        if not prompt and len(roles) < 2:
            raise ValueError("a conversation to train on needs an answer, got a question alone")
        opening = self._opening(system)
        return _move_blanks([self._segment(i, turn, opening, has_images) for i, turn in enumerate(rounds)])

    def _opening(self, system: str) -> str:
        """Return what stands before the first question when `system` is said first."""
        if not system or not self.questions:
            return self.opening
        if self.system:
            return self.opening.replace(self.system, system, 1)
        return f"{self.opening}{system}\n"

    def _segment(self, position: int, turn: Turn, opening: str, has_images: bool) -> Segment:
        text = self._message(turn.text, has_images)
        if turn.role == "gpt":
            return Segment(self.lead + text + self.trail, supervised=True, ends=self.closes)
        if not self.questions:
            text = IMAGE * turn.text.count(IMAGE) if has_images else ""
        before = self.before if position else opening
        return Segment(before + text + self.after, begins=position == 0 or self.reopens)

    def _message(self, text: str, has_images: bool) -> str:
        if self.image_position == "after_bos":
            return (text.replace(IMAGE, "") if has_images else text).strip()
        images = text.count(IMAGE) if has_images else 0
        return (f"{IMAGE}\n" * images + text.replace(IMAGE, "").strip()).strip() if images else text


def _move_blanks(segments: Sequence[Segment]) -> list[Segment]:
    """Move what is blank at a question's end to the front of the answer, where there is one."""
    moved, blanks = [], ""
    for segment in segments:
        text = segment.text if segment.supervised else segment.text.rstrip()
        moved.append(replace(segment, text=blanks + text))
        blanks = segment.text[len(text) :]
    return moved


def find_template(name: str) -> Template:
    """Return the template called `name`.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in TEMPLATES:
        raise ValueError(f"no template is called {name!r}; there are {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


TEMPLATES: dict[str, Template] = {
    template.name: template
    for template in (
        Template(
            "vicuna_v1", "text", opening=f"{CURIOUS}USER: ", before="USER: ", after=" ASSISTANT:",
            system=CURIOUS.strip(),
        ),
        Template(
            "llava_llama_2", "text", opening=f"[INST] <<SYS>>\n{HELPFUL}\n<</SYS>>\n\n", before="[INST] ",
            after=" [/INST]", trail=" ", reopens=True, system=HELPFUL,
        ),
        Template("plain", "text", lead="", trail="\n", closes=False, questions=False),
        Template(
            "vicuna_v15", "after_bos", opening=f"{CURIOUS}USER: ", before="USER: ", after=" ASSISTANT:",
            system=CURIOUS.strip(),
        ),
        Template("pure", "after_bos", opening="In: ", before="In: ", after="\nOut:"),
        # the missing > in the system mark is Prismatic's own spelling; its checkpoints were trained with it
        Template(
            "llama2_chat", "after_bos", opening=f"[INST] <<SYS>\n{HELPFUL}\n<</SYS>>\n\n", before="[INST] ",
            after=" [/INST]", system=HELPFUL,
        ),
        Template("text", "text", reopens=True, forces_bos=False),
    )
}  # fmt: skip
