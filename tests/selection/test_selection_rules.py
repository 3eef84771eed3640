import math
import random

import numpy as np
import pytest

from vlmsel.selection import top


def choose(uids, scores, k, sources=None, quota=None):
    """Call `top` with lists."""
    sources = None if sources is None else np.asarray(sources)
    return top(np.asarray(uids), np.asarray(scores, dtype=np.float64), k, sources, quota).tolist()


def one_by_one(uids, scores, k, sources, quota):
    """Take samples from the best on while their source has a place, as `top` does by arrays."""
    places = {source: math.floor(share * k + 1e-9) for source, share in quota.items()}
    chosen: list[int] = []
    finite = [one for one in zip(scores, uids, sources, strict=True) if math.isfinite(one[0])]
    for _, uid, source in sorted(finite):
        if len(chosen) < k and places.get(source, k) > 0:
            chosen.append(uid)
            places[source] = places.get(source, k) - 1
    return chosen


def test_lowest_first_and_ties_by_uid():
    assert choose([5, 3, 9], [1.0, 1.0, -1.0], 3) == [9, 3, 5]


def test_equals_sorting_whole_pool():
    rng = random.Random(0)
    scores = [rng.gauss(0, 1) for _ in range(200)]
    assert choose(range(200), scores, 20) == sorted(range(200), key=scores.__getitem__)[:20]


def test_order_of_rows_does_not_matter():
    rng = random.Random(1)
    rows = [(uid, rng.choice([0.0, 1.0, 2.0])) for uid in range(50)]
    shuffled = random.Random(2).sample(rows, 50)
    assert choose(*zip(*rows, strict=True), 7) == choose(*zip(*shuffled, strict=True), 7)


def test_quota_caps_a_source_and_fills_from_the_rest():
    uids, scores, sources = range(6), [0, 1, 2, 3, 4, 5], ["a", "a", "a", "b", "b", "b"]
    assert choose(uids, scores, 4, sources, {"a": 0.25}) == [0, 3, 4, 5]


@pytest.mark.parametrize("seed", range(20))
def test_quotas_with_ties_and_gaps_choose_what_taking_one_by_one_does(seed):
    rng = random.Random(seed)
    scores = [rng.choice([-1.0, 0.0, -0.0, 2.0, math.nan, rng.random()]) for _ in range(60)]
    sources = [rng.choice("abc") for _ in range(60)]
    uids = rng.sample(range(100), 60)
    quota = {"a": rng.choice([0.0, 0.1, 1.0]), "c": 0.3}
    assert choose(uids, scores, 12, sources, quota) == one_by_one(uids, scores, 12, sources, quota)


def test_non_finite_scores_are_never_chosen():
    with pytest.raises(ValueError, match="3 samples were asked for, only 2"):
        choose([0, 1, 2], [math.nan, 1.0, 2.0], 3)
    assert choose([0, 1, 2], [-math.inf, 1.0, 2.0], 2) == [1, 2]


@pytest.mark.parametrize(
    ("quota", "said"),
    [({"c": 0.5}, "source 'c', which the pool does not have .it has a, b"), ({"a": 1.5}, "must lie in .0, 1., got 1.5"),
     ({"a": 0.0, "b": 0.0}, "only 0 with a finite score can be chosen within the quota")],
)  # fmt: skip
def test_quotas_that_cannot_be(quota, said):
    with pytest.raises(ValueError, match=said):
        choose([0, 1], [0.0, 1.0], 1, ["a", "b"], quota)
