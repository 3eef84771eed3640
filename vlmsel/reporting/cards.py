"""Samples as cards: their whole conversations, thumbnails of their pictures, and what scorers say of them.

What reads pictures is handed in, so that this room needs no model's library.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from vlmsel.data.formats import form_of, pool_digest, read_records
from vlmsel.data.formats.pictures import Picture as Placed
from vlmsel.data.sample import Sample
from vlmsel.data.templates import IMAGE
from vlmsel.reporting.parts import Card, Picture

SIDE, QUALITY = 176, 72  # of a thumbnail: pixels, JPEG's quality
PICTURES = 3  # of a sample
BEGINNING = 160  # characters of a card's first lines
SPEAKERS = {"system": "System", "human": "Human", "gpt": "Assistant"}
MOST = 20_000  # characters of a turn
Opener = Callable[[Path, str], Image.Image]  # folder, path in it; ValueError or OSError where it cannot be read


@dataclass(frozen=True)
class Thumbnails:
    """Makes small pictures of one folder; `folder` is None where none is known."""

    folder: Path | None
    opened: Opener
    _made: dict[str, str] = field(default_factory=dict)

    def of(self, sample: Sample) -> tuple[list[Picture], str]:
        """Return a sample's pictures, and why some are not shown, "" when all are."""
        pictures, problems = [], []
        for number, name in enumerate(sample.images[:PICTURES], 1):
            try:
                words = f"picture {number} of {len(sample.images)} of sample {sample.uid}: {name}"
                pictures.append(Picture(self._address(name), words))
            except (ValueError, OSError) as reason:
                problems.append(str(reason))
        if len(sample.images) > PICTURES:
            problems.append(f"{len(sample.images) - PICTURES} more pictures")
        return pictures, "; ".join(problems)

    def _address(self, name: str) -> str:
        if name not in self._made:
            if not isinstance(name, Placed) and (self.folder is None or not self.folder.is_dir()):
                where = "no image folder is known" if self.folder is None else f"{self.folder} is not there"
                raise ValueError(f"picture {name} is not shown: {where} (--images DIR)")
            self._made[name] = address(self.opened(self.folder or Path(), name))  # a placed one needs no folder
        return self._made[name]


def address(image: Image.Image) -> str:
    """Return a thumbnail as a data address."""
    small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


@dataclass(frozen=True)
class Texts:
    """Some samples of a file by uid, and why they are not there, "" where they are."""

    samples: Mapping[int, Sample]
    problem: str = ""

    @classmethod
    def read(cls, path: str | Path, uids: Iterable[int], sha256: str | None = None) -> Texts:
        """Read some samples of a file; one that is missing, damaged or changed is a problem that the page tells."""
        if not Path(path).exists():
            return cls({}, f"Texts are not shown: {path} is not there; start the report where the run was started.")
        if sha256 is not None and pool_digest(path) != sha256:
            return cls({}, f"Texts are not shown: {path} changed since it was scored.")
        try:
            records, form = read_records(path), form_of(path)
        except (ValueError, OSError) as reason:
            return cls({}, f"Texts are not shown: {reason}")
        samples = {}
        for uid in sorted(uid for uid in set(uids) if uid < len(records)):
            with suppress(ValueError):  # such a record was left out, and the card says that its text is not known
                samples[uid] = form.parse(uid, records[uid])
        return cls(samples)


@dataclass(frozen=True)
class Cards:
    """Makes cards of the samples of one file."""

    texts: Texts
    thumbnails: Thumbnails

    def card(self, uid: int, title: str, facts: Iterable[tuple[str, str]], keys: Mapping[str, float]) -> Card:
        """Return a card; where the sample's text is not known it has none."""
        sample = self.texts.samples.get(uid)
        if sample is None:
            return Card(uid, title, "text not known", (), facts=tuple(facts), keys=keys)
        turns = [(SPEAKERS[turn.role], _cut(turn.text, MOST)) for turn in sample.turns]
        said = " → ".join(" ".join(text.replace(IMAGE, " ").split()) for _, text in turns)
        pictures, missing = self.thumbnails.of(sample)
        return Card(uid, title, _cut(said, BEGINNING, ""), turns, pictures, missing, tuple(facts), keys)


def _cut(text: str, most: int, more: str = " ({} more characters)") -> str:
    return text if len(text) <= most else f"{text[:most]}…{more.format(len(text) - most)}"
