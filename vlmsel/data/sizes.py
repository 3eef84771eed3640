"""How long samples are and why some cannot be encoded, by position; of large pools found by several processes, once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from vlmsel import processes
from vlmsel.data.kept import Found, kept, looked_at, recalled

Look = Callable[[int], tuple[tuple[int, int], str]]  # position -> (tokens, supervised), why it cannot be used
PART = 1024  # samples that are worth starting processes for, amid a run


class Sizes:
    """Each sample's tokens and how many of them are learnt, found when they are asked for.

    Args:
        look: looks at one sample.
        count: how many there are.
        key: gives all that the sizes depend on, by which they are kept; None keeps nothing.
    """

    def __init__(self, look: Look, count: int, key: Callable[[], Any]) -> None:
        self._look, self._asked_key = look, key
        self._sizes, self._known = np.zeros((count, 2), np.int32), np.zeros(count, bool)
        self._reasons: dict[int, str] = {}
        self._recalled = self._complete = False

    @cached_property
    def _key(self) -> Any:
        return None if (key := self._asked_key()) is None else ("sizes", key)

    def at(self, positions: Sequence[int]) -> tuple[np.ndarray, dict[int, str]]:
        """Return the sizes at some positions, int32 [k, 2], and why some of these cannot be encoded.

        Each process looks at its own.
        """
        if not self._recalled and (found := recalled(len(self._known), self._key)) is not None:
            self._take(found)
        self._recalled = True
        asked = np.asarray(positions, np.int64)
        self._measure(asked[~self._known[asked]], PART)
        return self._sizes[asked], {i: self._reasons[i] for i in asked.tolist() if i in self._reasons}

    def all(self) -> tuple[np.ndarray, dict[int, str]]:
        """Return the sizes of all, int32 [n, 2], and why some cannot be encoded; several processes deal them."""
        if not self._complete:
            self._take(kept(len(self._known), self._key, self._rest))
        return self._sizes, self._reasons

    def _take(self, found: Found) -> None:
        self._sizes, self._known, self._complete = found.arrays["sizes"], np.ones(len(self._known), bool), True
        self._reasons = {int(position): reason for position, reason in found.about.items()}

    def _rest(self) -> Found:
        """Look at those that are not known."""
        own = np.flatnonzero(~self._known)[processes.rank() :: processes.count()]
        self._measure(own)
        for theirs, sizes, reasons in processes.gather((own, self._sizes[own], self._reasons)):
            self._sizes[theirs] = sizes
            self._reasons |= reasons
        return Found({"sizes": self._sizes}, dict(sorted(self._reasons.items())))

    def _measure(self, positions: np.ndarray, least: int | None = None) -> None:
        what = "measuring samples" if least is None else None
        for own, (sizes, reasons) in looked_at(self._run, positions.tolist(), what, least) if len(positions) else ():
            self._sizes[own], self._known[own] = sizes, True
            self._reasons |= reasons

    def _run(self, positions: Sequence[int]) -> tuple[list[tuple[int, int]], dict[int, str]]:
        looks = [self._look(position) for position in positions]
        reasons = {i: reason for i, (_, reason) in zip(positions, looks, strict=True) if reason}
        return [size for size, _ in looks], reasons


def distinct(names: Callable[[], Iterable[str]]) -> tuple[int, Iterable[str]]:
    """Return how many different names there are, and each once, in their order, without holding any.

    `names` gives them all, twice the same. Two names are one if 64 bits of their hashes are.
    """
    hashes = np.fromiter(map(hash, names()), np.int64)
    first = np.zeros(len(hashes), bool)
    first[np.unique(hashes, return_index=True)[1]] = True
    return int(first.sum()), (name for name, new in zip(names(), first, strict=True) if new)
