"""How a visual question is put to a model: named protocols of published evaluations.

    llava15    the question, a line break, "Answer the question using a single word or phrase." (LLaVA-1.5)
    prismatic  the same behind a line break, which templates of Prismatic strip again; POPE is read off the
               probabilities of Yes and No (Prismatic VLMs, TRI-ML/vlm-evaluation)
    bare       the question alone

OCR tokens of TextVQA stand between question and suffix in all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SHORT = "\nAnswer the question using a single word or phrase."
PopeMode = Literal["text", "logit"]


@dataclass(frozen=True)
class Protocol:
    """A named way to ask: prefix + question + suffix, and how POPE's answers are read."""

    name: str
    prefix: str = ""
    suffix: str = ""
    pope: PopeMode = "text"

    def prompt(self, question: str) -> str:
        """Return what the model is asked.

        >>> PROTOCOLS["llava15"].prompt("Is it red?")
        'Is it red?\\nAnswer the question using a single word or phrase.'
        """
        return self.prefix + question + self.suffix


PROTOCOLS = {
    one.name: one
    for one in (
        Protocol("llava15", suffix=SHORT),
        Protocol("prismatic", prefix="\n", suffix=SHORT, pope="logit"),
        Protocol("bare"),
    )
}


def find_protocol(name: str) -> Protocol:
    """Return the protocol called `name`.

    Raises:
        ValueError: there is none.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}; got {name!r}")
    return PROTOCOLS[name]
