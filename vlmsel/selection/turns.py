"""In which order target samples choose.

A party of weight w has its i-th turn at the time (i + ½) / w, so that of any number of turns each has its share,
rounded (Webster's method, Sainte-Laguë's sequence). Files take turns by their weights, and within a file its target
samples by theirs, so that few turns serve all files too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

Turns = Literal["root_loss", "loss", "equal"]
_GOLDEN = (math.sqrt(5) - 1) / 2


def file_weights(
    targets: Sequence[Mapping[str, Any]], turns: Turns, given: Mapping[str, float] | None
) -> dict[str, float]:
    """Return the weight of each target file, by name: what is given, else its mean target loss, else 1.

    Args:
        targets: {"file", "uid", "weight", "loss"} of the target samples that count.
        turns: "loss": files take turns in proportion to what is still to be learnt; "root_loss": to its square root,
            so that the hardest task leaves turns to the others; "equal": as often as each other.
        given: takes the place of both.

    Raises:
        ValueError: a weight is negative, all are 0, one is lacking or of no such file; a loss is not known.
    """
    files = list(dict.fromkeys(target["file"] for target in targets))
    if given is not None:
        return _checked(given, files)
    if turns == "equal":
        return dict.fromkeys(files, 1.0)
    losses: dict[str, float] = {}
    for file in files:
        own = [target for target in targets if target["file"] == file]
        if any(target["loss"] is None for target in own):
            raise ValueError(f"target {file}: no losses in the affinity file; pass --turns equal or --weights.{file} 1")
        weights = sample_weights(own)
        losses[file] = float(weights @ [target["loss"] for target in own] / weights.sum())
    if not any(losses.values()):
        return dict.fromkeys(files, 1.0)
    return {name: math.sqrt(loss) for name, loss in losses.items()} if turns == "root_loss" else losses


def _checked(given: Mapping[str, float], files: Sequence[str]) -> dict[str, float]:
    if wrong := [name for name in given if name not in files] + [name for name in files if name not in given]:
        raise ValueError(
            f"weights are needed of the target files that choose, {', '.join(files)}: look at {wrong[0]!r}"
        )
    for name, weight in given.items():
        if not 0 <= weight < math.inf:
            raise ValueError(f"the weight of target {name} must be 0 or more, got {weight}")
    if not any(given.values()):
        raise ValueError("the weights of all targets are 0; give one of them a positive weight")
    return {name: float(given[name]) for name in files}


def sample_weights(targets: Sequence[Mapping[str, Any]]) -> Float[np.ndarray, " t"]:
    """Return the records' own weights, 1 where they have none."""
    return np.array([1.0 if target["weight"] is None else target["weight"] for target in targets])


def shares(targets: Sequence[Mapping[str, Any]], weights: Mapping[str, float]) -> Float[np.ndarray, " t"]:
    """Return each target sample's part of the turns; they add up to 1."""
    found, files = sample_weights(targets), np.array([target["file"] for target in targets])
    for name, weight in weights.items():
        found[files == name] *= weight / found[files == name].sum()
    return found / found.sum()


def in_turn(weights: Float[np.ndarray, " m"], count: int) -> Int[np.ndarray, " k"]:
    """Return whose turn it is, `count` times; ties go to the first.

    >>> in_turn(np.array([2.0, 1.0, 1.0]), 8).tolist()
    [0, 1, 2, 0, 0, 1, 2, 0]
    """
    weights = weights / weights.sum()
    enough = np.floor((count + len(weights)) * weights + 0.5).astype(np.int64)  # by a time when count have passed
    parties = np.repeat(np.arange(len(weights)), enough)
    number = np.arange(len(parties)) - np.repeat(np.cumsum(enough) - enough, enough)
    return parties[np.lexsort((parties, (number + 0.5) / weights[parties]))][:count]


def turn_order(targets: Sequence[Mapping[str, Any]], weights: Mapping[str, float], count: int) -> Int[np.ndarray, " k"]:
    """Return which target sample's turn it is, `count` times.

    Equal samples of a file follow each other in steps of the golden ratio through the file, so that fewer turns than
    samples are spread over a file that is sorted.
    """
    files = np.array([target["file"] for target in targets])
    own, turns = sample_weights(targets), np.empty(count, dtype=np.int64)
    order = in_turn(np.array(list(weights.values())), count)
    for number, name in enumerate(weights):
        mine, places = np.flatnonzero(files == name), np.flatnonzero(order == number)
        mine = mine[np.argsort(np.arange(len(mine)) * _GOLDEN % 1, kind="stable")]
        turns[places] = mine[in_turn(own[mine], len(places))]
    return turns
