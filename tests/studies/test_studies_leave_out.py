"""LDS, deciles and groups: the mathematics against SciPy and loops, and intervals that hold what they say."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from vlmsel.studies.leave_out import equal_samples, halves, lds, ranked_parts, spearman


def test_spearman_is_scipys_column_by_column():
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 4, (12, 5)).astype(float), rng.normal(size=(12, 5))  # with ties
    expected = [spearmanr(one[:, t], other[:, t]).statistic for t in range(5)]
    np.testing.assert_allclose(spearman(one, other), expected, atol=1e-12)
    assert spearman(np.ones((3, 1)), np.arange(3.0)[:, None]).tolist() == [0.0]


def test_lds_of_an_additive_world_is_one_and_of_its_negative_minus_one():
    rng = np.random.default_rng(1)
    drawn, effects = halves(20, 16), rng.normal(size=(20, 6))
    losses = [[sum(effects[i, t] for i in range(20) if row[i]) for t in range(6)] for row in drawn]
    assert lds(drawn @ effects, np.array(losses))["value"] == pytest.approx(1.0)
    assert lds(-drawn @ effects, np.array(losses))["value"] == pytest.approx(-1.0)


def test_intervals_of_scores_that_say_nothing_hold_zero_though_targets_share_the_subsets():
    rng, missed = np.random.default_rng(2), 0
    for seed in range(20):
        shared = rng.normal(size=(24, 1))  # all targets move together, as they do
        found = lds(rng.normal(size=(24, 1)) + np.zeros((1, 8)), shared + 0.01 * rng.normal(size=(24, 8)), seed)
        missed += not found["low"] <= 0 <= found["high"]
    assert missed <= 4


def test_halves_are_halves_and_more_of_them_begin_with_the_same():
    assert halves(9, 4).sum(axis=1).tolist() == [4, 4, 4, 4]
    assert (halves(9, 4) == halves(9, 7)[:4]).all() and len(np.unique(halves(9, 7), axis=0)) > 1


def test_parts_of_a_ranking_cover_it_best_first():
    affinities = np.random.default_rng(3).normal(size=(1, 23))
    parts = ranked_parts(affinities, 5)
    assert np.concatenate(parts).tolist() == sorted(range(23), key=lambda i: -affinities[0, i])
    assert {len(part) for part in parts} == {4, 5}
    drawn = equal_samples(parts, 3, seed=0)
    assert all(len(one) == 3 and set(one) <= set(part) for one, part in zip(drawn, parts, strict=True))
    with pytest.raises(ValueError, match="5 samples are asked for and a part of the ranking has 4"):
        equal_samples(parts, 5, seed=0)
