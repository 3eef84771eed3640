"""One training sample: who said what, about which images, and where it came from.

A sample is known by `uid`, its position in its file. The `id` a file gives is kept but never used as a key: in public
instruction mixes it is neither unique nor of one type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Turn:
    """One message: `role` is "human" (never supervised) or "gpt" (supervised); `text` is as in the file."""

    role: Literal["human", "gpt"]
    text: str


@dataclass(frozen=True)
class Sample:
    """A conversation with the images it speaks of.

    `uid` is the position in the file, `source` names the data set it came from, `images` are paths relative to the
    image folder in the order of their `<image>` markers, `id` is the file's own identifier, if any.
    """

    uid: int
    source: str
    images: tuple[str, ...]
    turns: tuple[Turn, ...]
    id: str | int | None = None

    @property
    def image(self) -> str | None:
        """Give the first image's path, None for a text-only sample."""
        return self.images[0] if self.images else None
