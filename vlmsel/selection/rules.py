"""Which samples are chosen by one number each.

Scores are the influence I of the HyperINF paper: lowest = most helpful. Ties go to the smaller uid, so a choice is
reproducible. Samples without a finite score cannot be chosen.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from vlmsel.selection.budget import Budget, Purse


def top(scores: Float[np.ndarray, " n"], budget: Budget) -> Int[np.ndarray, " k"]:
    """Return the rows of the lowest scores that the budget pays for, most helpful first.

    Args:
        scores: one per sample, lowest = most helpful.
        budget: how much to choose.

    Raises:
        ValueError: the samples with a finite score do not use up the budget.
    """
    allowed = np.isfinite(scores)
    purse = Purse(budget, allowed)
    for row in np.argsort(np.where(allowed, scores, np.inf), kind="stable").tolist():
        if not purse.gone[row] and purse.take(row) and purse.spent():
            break
    return purse.rows()
