"""How questions are put to a model: named protocols of published evaluations, and the limits of an answer.

    llava15    the question, a line break, "Answer the question using a single word or phrase." (LLaVA-1.5)
               (with lettered options "Answer with the option's letter from the given choices directly.")
    prismatic  the same behind a line break, which templates of Prismatic strip again; POPE is read off the
               probabilities of Yes and No (Prismatic VLMs, TRI-ML/vlm-evaluation)
    bare       the question alone

OCR tokens of TextVQA stand between question and suffix in all of them. Text tasks have prompts of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
PopeMode = Literal["text", "logit"]


@dataclass(frozen=True)
class Protocol:
    """A named way to ask: prefix + question + suffix, and how POPE's answers are read."""

    prefix: str = ""
    suffix: str = ""
    pope: PopeMode = "text"


PROTOCOLS = {"llava15": Protocol("", SHORT), "prismatic": Protocol("\n", SHORT, "logit"), "bare": Protocol()}


@dataclass(frozen=True)
class Asking:
    """How all questions of a run are asked.

    Attributes:
        protocol: the name of one of `PROTOCOLS`.
        pope_mode: how POPE's answers are read; the protocol's own way when left out.
        batch_size: questions per batch; changes nothing but the time.
        max_new_tokens: longest answer in tokens; 128 as in LLaVA's and Prismatic's evaluations.

    Raises:
        ValueError: there is no such protocol or mode, or a number is below 1.
    """

    protocol: str = "llava15"
    pope_mode: PopeMode | None = None
    batch_size: int = 32
    max_new_tokens: int = 128

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}; got {self.protocol!r}")
        if self.pope_mode not in (None, "text", "logit"):
            raise ValueError(f"pope_mode must be text or logit, got {self.pope_mode!r}")
        numbers = (self.batch_size, self.max_new_tokens)
        if min(numbers) < 1:
            raise ValueError("batch_size and max_new_tokens must be at least 1, got {} and {}".format(*numbers))

    def prompt(self, question: str, letters: bool = False) -> str:
        """Return what a model is asked for a question, which may have lettered options.

        >>> Asking("llava15").prompt("Is it red?")
        'Is it red?\\nAnswer the question using a single word or phrase.'
        """
        way = PROTOCOLS[self.protocol]
        return way.prefix + question + (LETTER if letters and way.suffix else way.suffix)

    @property
    def pope(self) -> PopeMode:
        """How POPE's answers are read."""
        return self.pope_mode or PROTOCOLS[self.protocol].pope
