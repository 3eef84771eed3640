"""Duplicates in a pool: equal and nearly equal texts about the same pictures, and pictures that look alike.

Texts: Jaccard similarity of their sets of three successive words. Candidates are found by MinHash (Broder, 1997), whose
rows agree with that probability, in bands; every candidate is then checked by its sets, so that chance decides which
pairs are seen and never what is said of one. With 16 bands of 4 rows a pair at 0.8 is missed with probability 0.0002.

Pictures: the perceptual hash is the grey of 3 x 3 cells and the mean tint, rounded to steps of `STEP` after a random
shift (Datar et al., 2004), `SHIFTS` times; unlike signs of differences it is stable where a picture is flat. Candidates
agree in one of the hashes and are checked by 8 x 8 cells in colour, none of which may differ by more than `CELL`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from zlib import crc32

import numpy as np
from PIL import Image

BANDS, ROWS = 16, 4
SHINGLE = 3  # words
LIKE = 0.8  # Jaccard similarity of near-duplicates
CELL, STEP, SHIFTS = 16, 24, 16
LEADERS = 50  # of a bucket that a candidate is compared with
PRIME = (1 << 31) - 1


def plain_text(text: str) -> str:
    """Return a text without case, markers and anything but words.

    >>> plain_text("<image>\\nWhat is  THIS?")
    'what is this'
    """
    return " ".join(re.findall(r"\w+", text.replace("<image>", " ").lower()))


def shingles(text: str) -> frozenset[int]:
    """Return the hashes of three successive words each of a plain text; of a shorter one, that of the whole."""
    words = text.split()
    count = max(1, len(words) - SHINGLE + 1)
    return frozenset(crc32(" ".join(words[i : i + SHINGLE]).encode()) for i in range(count))


def groups(keys: Iterable[Hashable]) -> list[list[int]]:
    """Return the positions of equal keys, those of several, in order.

    >>> groups(["a", "b", "a"])
    [[0, 2]]
    """
    found: dict[Hashable, list[int]] = {}
    for place, key in enumerate(keys):
        found.setdefault(key, []).append(place)
    return [places for places in found.values() if len(places) > 1]


def similar_texts(texts: Sequence[str], about: Sequence[Hashable], seed: int = 0) -> list[tuple[int, int]]:
    """Return pairs of unequal plain texts about the same pictures with a similarity of at least `LIKE`.

    Each position stands behind at most one earlier one.
    """
    sets = [shingles(text) for text in texts]
    buckets = (
        [(about[place], band, row) for band, row in enumerate(bands)] for place, bands in enumerate(_bands(sets, seed))
    )

    def alike(one: int, other: int) -> bool:
        both, either = len(sets[one] & sets[other]), len(sets[one] | sets[other])
        return texts[one] != texts[other] and both >= LIKE * either

    return _paired(buckets, alike)


def _bands(sets: Sequence[frozenset[int]], seed: int) -> Iterable[list[bytes]]:
    """Give the bands of every set's MinHash."""
    rng = np.random.default_rng(seed)
    a = rng.integers(1, PRIME, BANDS * ROWS)[:, None]
    b = rng.integers(0, PRIME, BANDS * ROWS)[:, None]
    for one in sets:
        hashes = np.fromiter(one, np.int64, len(one)) % PRIME
        least = ((a * hashes + b) % PRIME).min(axis=1).astype(np.int32).reshape(BANDS, ROWS)
        yield [band.tobytes() for band in least]


class Look:
    """What a picture looks like, coarsely: cells in colour, and the eleven numbers that are hashed."""

    __slots__ = ("cells", "marks")

    def __init__(self, image: Image.Image) -> None:
        coarse = np.asarray(image.resize((3, 3), Image.Resampling.BOX), np.float32)
        tint = coarse.mean(axis=(0, 1))
        self.marks = np.append(coarse.mean(axis=2).ravel(), [tint[0] - tint[1], tint[2] - tint[1]])
        self.cells = np.asarray(image.resize((8, 8), Image.Resampling.BOX), np.uint8)

    def like(self, other: Look) -> bool:
        """Tell whether two pictures look alike."""
        return int(np.abs(self.cells.astype(np.int16) - other.cells).max()) <= CELL


def similar_pictures(looks: Sequence[Look], seed: int = 0) -> list[tuple[int, int]]:
    """Return pairs of pictures that look alike; each position stands behind at most one earlier one."""
    shifts = np.random.default_rng(seed).uniform(0, STEP, (SHIFTS, 11))
    rounded = (((look.marks + shifts) // STEP).astype(np.int8) for look in looks)
    buckets = ([(shift, row.tobytes()) for shift, row in enumerate(rows)] for rows in rounded)
    return _paired(buckets, lambda one, other: looks[one].like(looks[other]))


def _paired(buckets: Iterable[Sequence[Hashable]], alike: Callable[[int, int], bool]) -> list[tuple[int, int]]:
    """Pair each position with the first earlier one of a bucket of its own that it is like."""
    leaders: dict[Hashable, list[int]] = {}
    pairs = []
    for place, own in enumerate(buckets):
        earlier = sorted({one for key in own for one in leaders.get(key, ())})
        first = next((one for one in earlier if alike(one, place)), None)
        if first is not None:
            pairs.append((first, place))
            continue
        for key in own:
            if len(here := leaders.setdefault(key, [])) < LEADERS:
                here.append(place)
    return pairs
