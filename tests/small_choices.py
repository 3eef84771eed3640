"""Budgets and affinities for tests of the rules, and naive twins that share no code with them."""

import math

import numpy as np

from vlmsel.selection import Budget


def budget(total, n, costs=None, sources=None, limits=None, **more):
    """A budget of samples, or of tokens where `costs` are given; `limits` by source."""
    names, groups = np.unique(["" for _ in range(n)] if sources is None else sources, return_inverse=True)
    most = np.array([(limits or {}).get(name, total) for name in names.tolist()])
    unit = "samples" if costs is None else "tokens"
    costs = np.ones(n, dtype=np.int64) if costs is None else np.asarray(costs)
    return Budget(total, costs, groups.astype(np.int64), most, unit, **more)


class Wallet:
    """What is left of a budget, sample by sample."""

    def __init__(self, budget):
        self.left, self.room = budget.total, list(budget.limits)
        self.costs, self.groups = list(budget.costs), list(budget.groups)

    def fits(self, row):
        return self.costs[row] <= min(self.left, self.room[self.groups[row]])

    def pay(self, row):
        self.left -= self.costs[row]
        self.room[self.groups[row]] -= self.costs[row]


def each_in_turn(affinity, turns, budget, allowed):
    """Round robin on the whole matrix of affinities [t, n]: (row, target, value) of each choice."""
    wallet, taken, chosen = Wallet(budget), set(), []
    for target in turns:
        free = [i for i in range(affinity.shape[1]) if allowed[i] and i not in taken and wallet.fits(i)]
        if not free or wallet.left == 0:
            return chosen
        best = min(free, key=lambda i: (-affinity[target, i], i))
        taken.add(best)
        wallet.pay(best)
        chosen.append((best, int(target), float(affinity[target, best])))
    return chosen


def one_by_one(scores, budget):
    """Take the lowest finite scores while there is enough left."""
    wallet, chosen = Wallet(budget), []
    for row in sorted((i for i, score in enumerate(scores) if math.isfinite(score)), key=lambda i: (scores[i], i)):
        if wallet.fits(row) and wallet.left:
            wallet.pay(row)
            chosen.append(row)
    return chosen


def unit_rows(rng, n, r, whole=False):
    """Unit rows [n, r] in float32; with `whole` they have many ties and products without rounding."""
    if whole:
        return rng.choice([-1.0, 0.0, 0.0, 1.0], size=(n, r)).astype(np.float32)
    rows = rng.normal(size=(n, r))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
