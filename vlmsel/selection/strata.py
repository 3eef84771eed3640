"""Strata: what each source may have, and the rule again within each.

    b_c = k [(1 - λ) · share of c in what the rule chooses freely + λ · share of c in the pool]

so that a source that no target asks for is not forgotten, and none takes everything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from jaxtyping import Bool

from vlmsel.selection.budget import Budget, apportion
from vlmsel.selection.round_robin import Taken
from vlmsel.selection.turns import in_turn

Rule = Callable[[Budget, Bool[np.ndarray, " n"]], Taken]


def strata(rule: Rule, budget: Budget, allowed: Bool[np.ndarray, " n"], pool_share: float) -> Taken:
    """Choose by a rule within each source; of any part of the choice each source has its share.

    Args:
        rule: chooses from the allowed samples within a budget.
        budget: how much to choose in all.
        allowed: which samples may be chosen.
        pool_share: λ; 0 keeps the rule's mixture, 1 the pool's.

    Raises:
        ValueError: λ is not in [0, 1], or the allowed samples do not use up the budget.
    """
    if not 0 <= pool_share <= 1:
        raise ValueError(f"pool_share must lie in [0, 1], got {pool_share}")
    there = budget.per_group(allowed)
    free = budget.per_group(rule(budget, allowed).rows)
    mixed = (1 - pool_share) * free / free.sum() + pool_share * there / there.sum()
    parts = []
    for group, amount in enumerate(apportion(budget.total, mixed, np.minimum(there, budget.limits)).tolist()):
        here = allowed & (budget.groups == group)
        if amount and amount >= budget.costs[here].min():
            parts.append(rule(replace(budget, total=amount), here))
    if not parts:
        raise ValueError(f"no source's share of {budget.total} {budget.unit} pays for a sample; ask for more")
    counts = np.array([len(part.rows) for part in parts])
    order = in_turn(counts.astype(float), int(counts.sum()))
    places = np.argsort(np.argsort(order, kind="stable"))  # where, part by part, the next of the order stands
    return Taken(*(np.concatenate(each)[places] for each in zip(*parts, strict=True)))
