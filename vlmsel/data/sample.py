"""One training sample: who said what, about which images, and where it came from.

A sample is known by `uid`, its position in its file. The `id` that a file gives stays in its record and is no key: in
public instruction mixes it is neither unique nor of one type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "human", "gpt"]


@dataclass(frozen=True)
class Turn:
    """One message; `text` is as in the file.

    `role` is "human" (never supervised), "gpt" (supervised) or, of a sample's first turn alone, "system" (never
    supervised): what the assistant was told before the conversation.
    """

    role: Role
    text: str


@dataclass(frozen=True)
class Sample:
    """A conversation with the images it speaks of; a labelled text is one whose answer is the name of its class.

    `uid` is the position in the file, `source` names the data set it came from, `images` are paths relative to the
    image folder, or pictures that know where they lie, in the order of their `<image>` markers, `weight` is how much
    the sample counts, if the file says so.
    """

    uid: int
    source: str
    images: tuple[str, ...]
    turns: tuple[Turn, ...]
    weight: float | None = None

    def said(self, role: Role) -> tuple[str, ...]:
        """Return the texts of one role's turns."""
        return tuple(turn.text for turn in self.turns if turn.role == role)


@dataclass(frozen=True)
class Problem:
    """Why the sample `uid` cannot be used."""

    uid: int
    reason: str
