"""Mean gradients of many targets from one stream of mixed batches, against loops over each target's samples."""

import pytest
import torch
from tiny_models import tiny_vlm, wake_lora
from tiny_pool import COLLATE, Items, Run, broken, exploding, loop, loop_means, tiny_items

from vlmsel.gradients import select_blocks
from vlmsel.scorers import DataInf, Exact, LiSSA, TracIn
from vlmsel.scoring.batches import Batching, BatchPlan
from vlmsel.scoring.curvature import precondition
from vlmsel.scoring.targets import TargetPlan


@pytest.fixture(scope="module")
def model():
    built = tiny_vlm(dtype=torch.float64)
    wake_lora(built)
    return built


@pytest.fixture(scope="module")
def blocks(model):
    return select_blocks(model, "projector+lora")


def items():
    return tiny_items(dtype=torch.float64)


def mixed(samples, owners, groups):
    """Targets called t0, t1, ... whose samples stand in these batches."""
    names = tuple(f"t{number}" for number in range(max(owners) + 1))
    return TargetPlan(names, (Items(samples),), BatchPlan(Items(samples), COLLATE, groups), dict(enumerate(owners)))


def means_of(model, plan, losses=None, tokens=None):
    run = Run(model, items(), {}, losses=losses, plan=plan)
    run.budget.tokens = tokens
    return run.targets.v()


def joint(model, sets):
    return TargetPlan.of(model, {name: Items(own) for name, own in sets.items()}, Batching(10**6, 3))


def assert_close(found, expected):
    assert list(found) == list(expected)
    for name, mean in expected.items():
        torch.testing.assert_close(found[name], mean, rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("owners", [[0, 1, 2, 0, 1, 2, 2, 2], [0, 1, 1, 1, 1, 1, 1, 1]])
def test_a_batch_may_hold_samples_of_several_targets(model, blocks, owners):
    samples = items()
    sets = {
        f"t{t}": [s for s, owner in zip(samples, owners, strict=True) if owner == t] for t in range(max(owners) + 1)
    }
    expected = loop_means(model, sets, blocks)
    for groups in ([[3, 0, 7], [1, 2, 4], [6, 5]], [list(range(8))], [[i] for i in range(8)]):
        assert_close(means_of(model, mixed(samples, owners, groups)), expected)


def test_every_sample_may_be_a_target_of_its_own(model, blocks):
    samples, order = items(), [[7, 2, 0], [1, 3, 4, 6, 5]]
    assert_close(means_of(model, mixed(samples, range(8), order)), loop(model, samples, blocks))


def test_batches_cut_where_memory_is_short_keep_their_owners(model, blocks):
    samples, targets = items(), mixed(items(), range(8), [[7, 2, 0], [1, 3, 4, 6, 5]])
    assert_close(means_of(model, targets, tokens=1), loop(model, samples, blocks))


def test_sets_of_targets_make_one_stream_in_their_order(model, blocks):
    sets = {"b": items()[:3], "a": items()[3:4], "c": items()[4:]}
    plan = joint(model, sets)
    assert plan.names == ("b", "a", "c") and len(plan) == 3 and plan.plan.sizes == [3, 3, 2]
    assert_close(means_of(model, plan), loop_means(model, sets, blocks))


def test_a_set_without_samples_is_refused(model):
    with pytest.raises(ValueError, match="target c: .* without usable samples"):
        joint(model, {"b": items()[:2], "c": []})


def test_a_sample_that_is_not_finite_is_named_with_its_target(model, blocks):
    samples = items()
    samples[4] = broken(samples[4], "loss")
    with pytest.raises(ValueError, match="target t1: sample 22: the loss is not finite; remove it"):
        means_of(model, mixed(samples, [0, 0, 2, 2, 1, 0, 0, 0], [[3, 0, 7, 4], [1, 2, 6, 5]]))
    with pytest.raises(ValueError, match="target t5: sample 25: the gradient is not finite"):
        means_of(model, mixed(items(), range(8), [list(range(8))]), losses=exploding(25))


def test_a_target_without_samples_is_refused_by_name(model, blocks):
    with pytest.raises(ValueError, match="target t1: .* without usable samples"):
        means_of(model, mixed(items(), [0, 2, 0, 0, 0, 0, 0, 0], [[0, 1]]))
    with pytest.raises(ValueError, match="no target"):
        joint(model, {})


def test_scores_of_single_targets_are_those_of_one_set_each(model, tmp_path):
    samples, scorers = items(), [TracIn(), DataInf(), LiSSA(), Exact()]
    plan = mixed(samples, range(8), [[7, 2, 0], [1, 3, 4, 6, 5]])
    found = Run(model, samples, {}, plan=plan).score(scorers, tmp_path / "joint")
    expected = Run(model, samples, {f"t{i}": [one] for i, one in enumerate(samples)}).score(scorers, tmp_path / "apart")
    assert found.names == expected.names and found.scores.shape == (32, 8)
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-8, atol=1e-10)


def test_columns_are_named_after_scorer_and_target(model):
    run = Run(model, items(), {}, plan=mixed(items(), range(8), [list(range(8))]))
    found = precondition(run.targets, run.fit, [TracIn()])
    assert found.names == tuple(("TracIn", f"t{i}") for i in range(8))
