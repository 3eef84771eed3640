"""Herding: keep the mean feature of the chosen samples at the targets' mean (Welling 2009).

    next = argmax_i ⟨μ - 1/(s+1) Σ_chosen φ_j, φ_i⟩      after s choices; φ_i = c_i R / |i|, μ = mean target direction

Samples that say what chosen ones say already gain nothing, so that a pool full of near-duplicates is thinned. R makes
the columns orthonormal in the scorer's metric (`Affinities.whitening`): ⟨φ_i, φ_j⟩ is then the cosine of two samples'
gradients as far as the targets' span holds them, and ⟨μ, φ_i⟩ the mean unit affinity, whatever R is.

Exact for pools of up to 10,000 samples. In larger ones the samples that gain most are looked up 32 times or more, and
each time a part of the choice is made, exactly, among the best four times as many.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float, Int

from vlmsel.selection.budget import Budget, Purse
from vlmsel.selection.nearest import Features, blocks, nearest

_WHOLE = 10_000  # samples among which a choice is made at a time
_ROUNDS = 32
_EACH = 4  # candidates for every sample that is chosen of them
_SIZE = 1 << 14


def herd(
    features: Features,
    directions: Float[np.ndarray, "t r"],
    shares: Float[np.ndarray, " t"],
    whitening: Float[np.ndarray, "r d"],
    budget: Budget,
    allowed: Bool[np.ndarray, " n"],
) -> Int[np.ndarray, " k"]:
    """Return the rows that are chosen, in order, until the budget is used.

    Args:
        features: gives the samples' unit features c_i / |i|.
        directions: of the targets; their products with features are unit affinities.
        shares: how much each target counts; they add up to 1.
        whitening: R.
        budget: how much to choose.
        allowed: which samples may be chosen.

    Raises:
        ValueError: the allowed samples do not use up the budget.
    """
    purse = Purse(budget, allowed)
    aim = shares @ directions @ np.linalg.pinv(whitening.astype(np.float64)).T  # ⟨aim, R c⟩ = Σ share ⟨direction, c⟩
    total = np.zeros(len(aim))
    whole = int(allowed.sum()) <= _WHOLE
    picks = len(allowed) if whole else min(math.ceil(purse.expected() / _ROUNDS), _WHOLE // _EACH)
    while (free := purse.affordable()).any() and not purse.spent():
        rows = np.flatnonzero(free)
        if not whole:
            gain = whitening @ (aim - total / (len(purse.chosen) + 1))
            best = nearest(features, gain[None].astype(np.float32), free, np.array([_EACH * picks]))[0]
            rows = np.sort(best.rows)
        phi = _at(features, rows, len(allowed)) @ whitening
        taken = _greedy(phi @ phi.T, phi @ aim, phi @ total, rows, purse, picks)
        total = total + phi[taken].sum(axis=0, dtype=np.float64)
    return purse.rows()


def _greedy(
    gram: np.ndarray, mean: np.ndarray, like: np.ndarray, rows: np.ndarray, purse: Purse, picks: int
) -> list[int]:
    """Take up to so many of the rows; return where they stand.

    Args:
        gram: ⟨φ_i, φ_j⟩ of the rows.
        mean: ⟨μ, φ_i⟩.
        like: ⟨Σ chosen φ_j, φ_i⟩.
        rows: which they are.
        purse: what is left to spend.
        picks: how many.
    """
    taken: list[int] = []
    while len(taken) < picks and not purse.spent():
        best = int(np.argmax(mean - like / (len(purse.chosen) + 1)))
        if mean[best] == -np.inf:
            break
        mean[best] = -np.inf
        if purse.take(int(rows[best])):
            taken.append(best)
            like += gram[best]
    return taken


def _at(features: Features, rows: np.ndarray, count: int) -> np.ndarray:
    """Return the features of some of so many rows, block by block. [rows, r]"""
    wanted = np.zeros(count, dtype=bool)
    wanted[rows] = True
    return np.concatenate([features(block)[here] for block, here in blocks(wanted, _SIZE)])
