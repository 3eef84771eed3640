"""One training sample: who said what, about which images, and where it came from.

A sample is known by `uid`, its position in its file. The `id` a file gives is kept but never used as a key: in public
instruction mixes it is neither unique nor of one type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["human", "gpt"]


@dataclass(frozen=True)
class Turn:
    """One message: `role` is "human" (never supervised) or "gpt" (supervised); `text` is as in the file."""

    role: Role
    text: str


@dataclass(frozen=True)
class Sample:
    """A conversation with the images it speaks of; a labelled text is one whose answer is the name of its class.

    `uid` is the position in the file, `source` names the data set it came from, `images` are paths relative to the
    image folder in the order of their `<image>` markers, `id` is the file's own identifier and `weight` how much the
    sample counts, if the file says so.
    """

    uid: int
    source: str
    images: tuple[str, ...]
    turns: tuple[Turn, ...]
    id: str | int | None = None
    weight: float | None = None

    def said(self, role: Role) -> tuple[str, ...]:
        """Return the texts of one role's turns."""
        return tuple(turn.text for turn in self.turns if turn.role == role)


@dataclass(frozen=True)
class Problem:
    """Why the sample `uid` cannot be used."""

    uid: int
    reason: str
