"""Studies that retrain on parts of a pool: which parts, and what the measured losses say of a scorer; numbers alone.

    LDS      per target sample t the Spearman correlation, over M random halves S of the pool, of Σ_{i in S} a_ti with
             the measured negative loss of t; the mean over t (linear datamodelling score, Park et al. 2023, TRAK)
    deciles  equal samples from each tenth of a ranking: Spearman of the tenth (1: the best) and held-out loss
    groups   retrained without each fifth of a ranking: Spearman of a fifth's mean score and the loss without it
             (HyperINF, Table 6)

1 is a perfect scorer everywhere, 0 one that says nothing. The interval of the LDS is a bootstrap over subsets and
target samples both: all targets share the subsets, so that one over targets alone would be far too narrow.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata

from vlmsel.selection import combine_targets

TENTHS, GROUPS = 10, 5
RESAMPLES, AT_ONCE = 1000, 50


def spearman(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation of every column of one with that of the other, 0 where a column is constant.
    [..., m, t], [..., m, t] -> [..., t]

    >>> spearman(np.array([[1.0], [2.0], [4.0]]), np.array([[3.0], [5.0], [9.0]])).tolist()
    [1.0]
    """
    ranks = [rankdata(values, axis=-2) - (values.shape[-2] + 1) / 2 for values in (one, other)]
    scale = np.sqrt((ranks[0] ** 2).sum(axis=-2) * (ranks[1] ** 2).sum(axis=-2))
    return np.where(scale > 0, (ranks[0] * ranks[1]).sum(axis=-2) / np.where(scale > 0, scale, 1), 0.0)


def lds(predicted: np.ndarray, measured: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Return the mean over targets of the correlation over subsets, with a 95 % bootstrap interval. [m, t], [m, t]"""
    rng, (subsets, targets) = np.random.default_rng(seed), predicted.shape
    means: list[float] = []
    for _ in range(RESAMPLES // AT_ONCE):
        at = rng.integers(subsets, size=(AT_ONCE, subsets, 1)), rng.integers(targets, size=(AT_ONCE, 1, targets))
        means += spearman(predicted[at], measured[at]).mean(axis=-1).tolist()
    low, high = np.quantile(means, [0.025, 0.975])
    return {"value": float(spearman(predicted, measured).mean()), "low": float(low), "high": float(high)}


def halves(count: int, subsets: int, seed: int = 0) -> np.ndarray:
    """Draw random halves of so many samples; the first of more subsets are those of fewer. [subsets, count] of 0, 1"""
    found = np.zeros((subsets, count))
    for number, row in enumerate(found):
        row[np.random.default_rng([*b"lds", seed, number]).permutation(count)[: count // 2]] = 1
    return found


def ranked_parts(affinities: np.ndarray, parts: int) -> list[np.ndarray]:
    """Cut the ranking by affinities to several files into equal parts, best first; a sample counts by the file that
    ranks it best, as for the rule top. [files, n] -> positions

    >>> [part.tolist() for part in ranked_parts(np.array([[0.1, 0.9, 0.5, 0.2]]), 2)]
    [[1, 2], [3, 0]]
    """
    return np.array_split(np.argsort(combine_targets(-affinities), kind="stable"), parts)


def equal_samples(parts: Sequence[np.ndarray], count: int, seed: int) -> list[np.ndarray]:
    """Draw as many positions from each part.

    Raises:
        ValueError: a part has fewer.
    """
    if count > (least := min(map(len, parts))):
        raise ValueError(f"{count} samples are asked for and a part of the ranking has {least}; lower --count")
    rng = np.random.default_rng([*b"deciles", seed])
    return [rng.permutation(part)[:count] for part in parts]
