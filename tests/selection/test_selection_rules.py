import math
import random

import numpy as np
import pytest
from small_choices import budget, one_by_one

from vlmsel.selection import Ask, Facts, top


def choose(scores, k, sources=None, quota=None):
    """Call `top` with lists."""
    facts = Facts(np.array(sources or [""] * len(scores)), np.ones(len(scores), dtype=bool))
    return top(np.asarray(scores, dtype=np.float64), Ask(count=k, quota=quota).budget(facts)).tolist()


def test_lowest_first_and_ties_by_uid():
    assert choose([1.0, 1.0, -1.0], 3) == [2, 0, 1]


def test_equals_sorting_whole_pool():
    rng = random.Random(0)
    scores = [rng.gauss(0, 1) for _ in range(200)]
    assert choose(scores, 20) == sorted(range(200), key=scores.__getitem__)[:20]


def test_quota_caps_a_source_and_fills_from_the_rest():
    assert choose([0, 1, 2, 3, 4, 5], 4, ["a", "a", "a", "b", "b", "b"], {"a": 0.25}) == [0, 3, 4, 5]


@pytest.mark.parametrize("seed", range(20))
def test_quotas_with_ties_and_gaps_choose_what_taking_one_by_one_does(seed):
    rng = random.Random(seed)
    scores = [rng.choice([-1.0, 0.0, -0.0, 2.0, math.nan, rng.random()]) for _ in range(60)]
    sources = [rng.choice("abc") for _ in range(60)]
    limits = {"a": rng.choice([0, 1, 12]), "c": 3}
    quota = {"a": limits["a"] / 12, "c": 0.3}
    assert choose(scores, 12, sources, quota) == one_by_one(scores, budget(12, 60, sources=sources, limits=limits))


@pytest.mark.parametrize("seed", range(10))
def test_tokens_are_spent_until_nothing_fits(seed):
    rng = np.random.default_rng(seed)
    scores, costs = rng.normal(size=80), rng.integers(2, 30, size=80)
    scores[rng.random(80) < 0.2] = np.nan
    amount = budget(300, 80, costs, rng.choice(["a", "b"], size=80), {"a": 90})
    found = top(scores, amount).tolist()
    assert found == one_by_one(scores, amount)
    left = [costs[i] for i in range(80) if i not in found and amount.groups[i] == 1 and np.isfinite(scores[i])]
    assert 0 <= 300 - costs[found].sum() < min(left)


def test_non_finite_scores_are_never_chosen():
    with pytest.raises(ValueError, match="3 samples were asked for, only 2"):
        choose([math.nan, 1.0, 2.0], 3)
    assert choose([-math.inf, 1.0, 2.0], 2) == [1, 2]


@pytest.mark.parametrize(
    ("quota", "said"),
    [({"c": 0.5}, "source 'c', which the pool does not have .it has a, b"), ({"a": 1.5}, "must lie in .0, 1., got 1.5"),
     ({"a": 0.0, "b": 0.0}, "only 0 with a finite score can be chosen within the quota")],
)  # fmt: skip
def test_quotas_that_cannot_be(quota, said):
    with pytest.raises(ValueError, match=said):
        choose([0.0, 1.0], 1, ["a", "b"], quota)
