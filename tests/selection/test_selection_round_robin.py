"""Targets choosing in turn, against a loop over the whole matrix."""

from importlib import import_module

import numpy as np
import pytest
from small_choices import budget, each_in_turn, unit_rows

from vlmsel.selection import round_robin
from vlmsel.selection.turns import in_turn

nearest, rule = import_module("vlmsel.selection.nearest"), import_module("vlmsel.selection.round_robin")


def assert_as_the_loop(features, directions, turns, amount, allowed=None):
    allowed = np.ones(len(features), dtype=bool) if allowed is None else allowed
    taken = round_robin(lambda rows: features[rows], directions, turns, amount, allowed)
    expected = each_in_turn(directions @ features.T, turns, amount, allowed)
    assert list(zip(taken.rows, taken.takers, strict=True)) == [one[:2] for one in expected]
    np.testing.assert_allclose(taken.values, [one[2] for one in expected], atol=1e-6)
    return taken


@pytest.fixture(params=["as it is", "small blocks"])
def sizes(request, monkeypatch):
    """Many blocks, candidates that are thrown away, and rankings that run out, also where little is chosen."""
    if request.param == "small blocks":
        monkeypatch.setattr(nearest, "_AT_ONCE", 1)
        monkeypatch.setattr(nearest, "_HELD", 0)
        monkeypatch.setattr(rule, "_FIRST", 1)


@pytest.mark.parametrize("whole", [False, True], ids=["real", "ties"])
@pytest.mark.parametrize("seed", range(3))
def test_each_takes_its_best_that_is_left(seed, whole, sizes):
    rng = np.random.default_rng(seed)
    features, directions = unit_rows(rng, 700, 4, whole), unit_rows(rng, 7, 4, whole)
    allowed = rng.random(700) < 0.8
    turns = in_turn(rng.random(7), 200)
    assert_as_the_loop(features, directions, turns, budget(200, 700), allowed)


@pytest.mark.parametrize("count", [1, 150, 300])
def test_targets_that_want_the_same_samples(count, sizes):
    """Every ranking is the same: one runs out as soon as all do."""
    rng = np.random.default_rng(0)
    features = unit_rows(rng, 300, 3)
    directions = np.repeat(unit_rows(rng, 1, 3), 60, axis=0)
    taken = assert_as_the_loop(features, directions, in_turn(np.ones(60), count), budget(count, 300))
    best_first = np.lexsort((np.arange(300), -(features @ directions[0])))
    np.testing.assert_allclose(features[taken.rows] @ directions[0], features[best_first[:count]] @ directions[0])


def test_a_target_with_nearly_all_turns_beside_many(sizes):
    rng = np.random.default_rng(1)
    features, directions = unit_rows(rng, 400, 5), unit_rows(rng, 40, 5)
    turns = in_turn(np.array([100.0, *[1.0] * 39]), 350)
    assert_as_the_loop(features, directions, turns, budget(350, 400))


@pytest.mark.parametrize("seed", range(3))
def test_tokens_and_sources_bound_the_choice(seed, sizes):
    rng = np.random.default_rng(seed)
    features, directions = unit_rows(rng, 300, 4), unit_rows(rng, 6, 4)
    costs, sources = rng.integers(3, 40, size=300), rng.choice(["a", "b", "c"], size=300)
    amount = budget(1500, 300, costs, sources, {"a": 100})
    turns = np.array(in_turn(np.ones(6), amount.most(np.ones(300, dtype=bool))))
    taken = assert_as_the_loop(features, directions, turns, amount)
    assert 1500 - costs[taken.rows].sum() < costs.min() and costs[taken.rows][sources[taken.rows] == "a"].sum() <= 100


def test_samples_in_another_order_are_chosen_all_the_same():
    rng = np.random.default_rng(2)
    features, directions, order = unit_rows(rng, 200, 4), unit_rows(rng, 5, 4), rng.permutation(200)
    turns, allowed = in_turn(np.ones(5), 60), np.ones(200, dtype=bool)
    one = round_robin(lambda rows: features[rows], directions, turns, budget(60, 200), allowed)
    other = round_robin(lambda rows: features[order][rows], directions, turns, budget(60, 200), allowed)
    assert one.rows.tolist() == order[other.rows].tolist()


def test_what_cannot_be_paid_for_is_refused():
    features, directions = np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32)[:2]
    few = np.array([True, False, True, False])
    with pytest.raises(ValueError, match="3 samples were asked for, only 2 with a finite score can be chosen; ask for"):
        round_robin(lambda rows: features[rows], directions, in_turn(np.ones(2), 3), budget(3, 4), few)
    with pytest.raises(ValueError, match="budget of 5 tokens is less than the shortest sample, which has 6"):
        amount = budget(5, 4, [6, 7, 8, 9])
        round_robin(lambda rows: features[rows], directions, in_turn(np.ones(2), 3), amount, few)
