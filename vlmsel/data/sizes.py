"""How long samples are and why some cannot be encoded, by position; of large pools found by several processes, once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlmsel import processes
from vlmsel.data.kept import Found, kept, looked_at

Look = Callable[[int], tuple[tuple[int, int], str]]  # position -> (tokens, supervised), why it cannot be used


@dataclass(frozen=True)
class Looks:
    """Each sample's tokens and how many of them are learnt, int32 [n, 2]; the reasons why some cannot be encoded."""

    sizes: np.ndarray
    reasons: dict[int, str]


def measured(look: Look, count: int, key: Any) -> Looks:
    """Look at `count` samples, or return what is kept of an earlier call with an equal `key`; None keeps nothing.

    Several processes of a run deal the samples among them.
    """
    found = kept(count, None if key is None else ("sizes", key), lambda: _measured(look, count))
    return Looks(found.arrays["sizes"], {int(position): reason for position, reason in found.about.items()})


def _measured(look: Look, count: int) -> Found:
    dealt = range(processes.rank(), count, processes.count())
    sizes = np.zeros((count, 2), np.int32)
    reasons: dict[int, str] = {}
    for own, looks in looked_at(look, dealt, "measuring samples"):
        sizes[own.start : own.stop : own.step] = [size for size, _ in looks]
        reasons |= {i: reason for i, (_, reason) in zip(own, looks, strict=True) if reason}
    parts = processes.gather((sizes[dealt.start :: dealt.step], reasons))
    for rank, (part, why) in enumerate(parts):
        sizes[rank :: len(parts)] = part
        reasons |= why
    return Found({"sizes": sizes}, dict(sorted(reasons.items())))


def distinct(names: Callable[[], Iterable[str]]) -> tuple[int, Iterable[str]]:
    """Return how many different names there are, and each once, in their order, without holding any.

    `names` gives them all, twice the same. Two names are one if 64 bits of their hashes are.
    """
    hashes = np.fromiter(map(hash, names()), np.int64)
    first = np.zeros(len(hashes), bool)
    first[np.unique(hashes, return_index=True)[1]] = True
    return int(first.sum()), (name for name, new in zip(names(), first, strict=True) if new)
