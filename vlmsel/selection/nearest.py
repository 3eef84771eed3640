"""Each target's best samples by unit affinity, in one pass over blocks of samples.

What is kept per target is a bound for all later samples: all but few of the T·N affinities are compared with it and
forgotten. Ties go to the sample that comes first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

Features = Callable[[slice], np.ndarray]  # rows of the samples' unit features, [rows, r]
_AT_ONCE = 1 << 22  # affinities
_HELD = 1 << 22  # candidates beyond twice those that are kept


class Ranked(NamedTuple):
    """A target's best samples, best first."""

    rows: Int[np.ndarray, " k"]
    values: Float[np.ndarray, " k"]


def blocks(allowed: Bool[np.ndarray, " n"], size: int) -> list[tuple[slice, Int[np.ndarray, " b"]]]:
    """Cut the rows into slices of a size; return those with allowed rows, and where in the slice these are."""
    cut = [slice(start, min(start + size, len(allowed))) for start in range(0, len(allowed), size)]
    found = [(rows, np.flatnonzero(allowed[rows])) for rows in cut]
    return [(rows, among) for rows, among in found if len(among)]


def nearest(
    features: Features,
    directions: Float[np.ndarray, "t r"],
    allowed: Bool[np.ndarray, " n"],
    keep: Int[np.ndarray, " t"],
) -> list[Ranked]:
    """Return for each target its `keep` best rows among those allowed.

    Args:
        features: gives unit features of rows.
        directions: of the targets; their products with unit features are unit affinities.
        allowed: which rows count.
        keep: how many are kept for each target.
    """
    size = max(256, _AT_ONCE // len(directions))
    floor = np.full((len(directions), 1), -np.inf, dtype=np.float32)
    held: list[tuple[np.ndarray, ...]] = []
    count, most = 0, 2 * int(keep.sum()) + _HELD
    for rows, among in blocks(allowed, size):
        values = directions @ features(rows)[among].T
        found = np.flatnonzero(values > floor)
        owners, columns = np.divmod(found, len(among))
        held.append((owners.astype(np.int32), (rows.start + among[columns]).astype(np.int32), values.ravel()[found]))
        count += len(found)
        if count > most:
            held, floor = _best(held, keep)
            count = len(held[0][0])
    (owners, kept, values), *_ = _best(held, keep)[0]
    bounds = np.searchsorted(owners, np.arange(len(keep) + 1))
    return [_sorted(kept[own], values[own]) for own in map(slice, bounds[:-1], bounds[1:])]


def _sorted(rows: np.ndarray, values: np.ndarray) -> Ranked:
    order = np.argsort(-values, kind="stable")
    return Ranked(rows[order], values[order])


def _best(held: list[tuple[np.ndarray, ...]], keep: np.ndarray) -> tuple[list[tuple[np.ndarray, ...]], np.ndarray]:
    """Keep each target's best of (owner, row, value), owner by owner; return them, and what is to be surpassed. [t, 1]

    Rows of an owner stay in their order.
    """
    owners, rows, values = (np.concatenate(part) for part in zip(*held, strict=True))
    order = np.argsort(owners.astype(np.min_scalar_type(len(keep))), kind="stable")  # few bits sort fast
    bounds = np.searchsorted(owners[order], np.arange(len(keep) + 1))
    floor, kept = np.full((len(keep), 1), -np.inf, dtype=np.float32), []
    for t, count in enumerate(keep.tolist()):
        own = order[bounds[t] : bounds[t + 1]]
        if len(own) >= count:
            own = own[_largest(values[own], count)]
            floor[t] = values[own].min()
        kept.append(own)
    every = np.concatenate(kept)
    return [(owners[every], rows[every], values[every])], floor


def _largest(values: Float[np.ndarray, " n"], count: int) -> Int[np.ndarray, " k"]:
    """Return where the `count` largest values are, the first of equal ones, in order."""
    least = np.partition(values, len(values) - count)[len(values) - count]
    taken = values > least
    taken[np.flatnonzero(values == least)[: count - int(taken.sum())]] = True
    return np.flatnonzero(taken)
