"""What a page is made of: sections of tables, charts, facts and galleries, as data; the template draws them.

Nothing here is HTML: texts are as the data have them, and the template escapes all of them. Charts are numbers in
percent of their own width and height, so that they need neither a picture nor a fixed size.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np


@dataclass(frozen=True)
class Prose:
    """A paragraph; `tone` is good, bad, open or plain."""

    kind: ClassVar[str] = "prose"
    text: str
    tone: str = "plain"


@dataclass(frozen=True)
class Table:
    """Rows of cells, head first; the first cell of a row is its heading."""

    kind: ClassVar[str] = "table"
    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Code:
    """Text to copy, such as a command."""

    kind: ClassVar[str] = "code"
    caption: str
    text: str
    shut: bool = False


@dataclass(frozen=True)
class Place:
    """A row of `Dots`: where its dot and its interval lie, in percent of the track."""

    label: str
    shown: str
    dot: float
    left: float
    width: float


@dataclass(frozen=True)
class Dots:
    """Values with intervals on a common scale, one row each.

    Attributes:
        caption: what is drawn.
        places: the rows.
        low, high: what the ends of the scale mean.
        mark: where a line stands, in percent; None for none.
    """

    kind: ClassVar[str] = "dots"
    caption: str
    places: Sequence[Place]
    low: str
    high: str
    mark: float | None = None


def dots(
    caption: str,
    rows: Iterable[tuple[str, float, float, float, str]],
    mark: float | None = None,
    within: tuple[float, ...] = (),
) -> Dots:
    """Lay out rows of label, value, lower end, upper end and text; `mark` is a value that gets a line, and values
    `within` are on the scale too.

    >>> dots("a", [("x", 1.0, 0.0, 2.0, "1 ± 1"), ("y", 4.0, 4.0, 4.0, "4")]).places[0]
    Place(label='x', shown='1 ± 1', dot=25.0, left=0.0, width=50.0)
    """
    given = list(rows)
    ends = [value for _, *three, _ in given for value in three if np.isfinite(value)]
    ends += [*within, *([] if mark is None else [mark])]
    low, high = (min(ends), max(ends)) if ends else (0.0, 0.0)
    low, high = (low, high) if low < high else (low - 0.5, high + 0.5)
    scale = 100 / (high - low)

    def at(value: float) -> float:
        return round(scale * (value - low), 2)

    places = [
        Place(label, shown, at(value), at(first), round(at(last) - at(first), 2))
        for label, value, first, last, shown in given
        if np.isfinite([value, first, last]).all()
    ]
    return Dots(caption, places, f"{low:.3g}", f"{high:.3g}", None if mark is None else at(mark))


@dataclass(frozen=True)
class Histogram:
    """Shares of values by size, several series over each other.

    Attributes:
        caption: what is drawn.
        series: the height of every bar in percent of the highest, by the series' name.
        low, high: the ends of the axis.
        note: what does not show, such as values beyond the ends.
    """

    kind: ClassVar[str] = "histogram"
    caption: str
    series: Mapping[str, Sequence[float]]
    low: str
    high: str
    note: str


def histogram(caption: str, series: Mapping[str, np.ndarray], bins: int = 40) -> Histogram | None:
    """Count finite values between the 0.5 and 99.5 % quantiles of the first series; None where there are none."""
    known = {name: values[np.isfinite(values)] for name, values in series.items()}
    first = next(iter(known.values()))
    if not len(first):
        return None
    low, high = float(np.quantile(first, 0.005, method="lower")), float(np.quantile(first, 0.995, method="higher"))
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, bins + 1)
    shares = {name: np.histogram(own, edges)[0] / max(1, len(own)) for name, own in known.items()}
    top = max((float(own.max()) for own in shares.values()), default=0.0) or 1.0
    heights = {name: [round(100 * one / top, 1) for one in own.tolist()] for name, own in shares.items()}
    means = ", ".join(f"{name}: {_spread(own)}" if len(known) > 1 else _spread(own) for name, own in known.items())
    beyond = int(((first < low) | (first > high)).sum())
    return Histogram(caption, heights, f"{low:.3g}", f"{high:.3g}", means + (f"; {beyond} beyond" if beyond else ""))


def _spread(values: np.ndarray) -> str:
    return f"{len(values)} values, median {np.median(values):.3g}" if len(values) else "none"


@dataclass(frozen=True)
class Matrix:
    """Numbers between names, 0 to 1 as shade; `caption` says what of."""

    kind: ClassVar[str] = "matrix"
    caption: str
    names: Sequence[str]
    cells: Sequence[Sequence[float | None]]
    form: str = ".2f"
    note: str = ""


@dataclass(frozen=True)
class Lines:
    """Curves over 0 to 100 % in both directions, by name: points of x and y in percent."""

    kind: ClassVar[str] = "lines"
    caption: str
    curves: Mapping[str, Sequence[tuple[float, float]]]
    across: str
    up: str


@dataclass(frozen=True)
class Picture:
    """A thumbnail as a data address, with words for who does not see it."""

    source: str
    words: str


@dataclass(frozen=True)
class Card:
    """A sample.

    Attributes:
        uid: its position in its file.
        title: what it is called.
        beginning: the first words.
        turns: who says what.
        pictures: thumbnails.
        missing: why pictures are not shown, if so.
        facts: names and values.
        keys: numbers that cards are sorted by.
    """

    uid: int
    title: str
    beginning: str
    turns: Sequence[tuple[str, str]]
    pictures: Sequence[Picture] = ()
    missing: str = ""
    facts: Sequence[tuple[str, str]] = ()
    keys: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Gallery:
    """Cards under a heading; `lead` is a card that the others belong to."""

    kind: ClassVar[str] = "gallery"
    title: str
    note: str
    cards: Sequence[Card]
    lead: Card | None = None


@dataclass(frozen=True)
class Suspect:
    """A labelled sample that may be labelled wrongly."""

    rank: int
    uid: int
    given: str
    likely: str
    true: str
    suspicion: float
    score: str
    texts: Sequence[str]


@dataclass(frozen=True)
class Suspects:
    """Suspects to decide on; `labels` are the classes, `cut` is the rank of the last that is taken for wrong."""

    kind: ClassVar[str] = "suspects"
    caption: str
    rows: Sequence[Suspect]
    labels: Sequence[str]
    known: bool
    cut: int | None = None


Part = Prose | Table | Code | Dots | Histogram | Matrix | Lines | Gallery | Suspects


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    parts: Sequence[Part]

    @property
    def galleries(self) -> bool:
        """Tell whether there are cards to search and sort."""
        return any(isinstance(part, Gallery) for part in self.parts)

    @property
    def anchor(self) -> str:
        """Return what links to the section say."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-") or "section"
