"""Mean gradients of many targets from one stream of mixed batches, against loops over each target's samples."""

import pytest
import torch
from tiny_models import tiny_vlm, wake_lora
from tiny_pool import COLLATE, OBJECTIVE, Items, broken, exploding, job, loop, loop_means, tiny_items, tiny_plan

from vlmsel.gradients import select_blocks
from vlmsel.scorers import DataInf, Exact, LiSSA, TracIn
from vlmsel.scoring.batches import BatchPlan
from vlmsel.scoring.curvature import Streams, find_directions
from vlmsel.scoring.halving import Budget
from vlmsel.scoring.pool_pass import score_pool
from vlmsel.scoring.score_pass import backward
from vlmsel.scoring.targets import Targets, target_means


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
    return Targets(names, BatchPlan(Items(samples), COLLATE, groups), dict(enumerate(owners)))


def means_of(model, blocks, targets, objective=OBJECTIVE, budget=None):
    with backward(model, objective, blocks, budget or Budget()) as run:
        return target_means(targets, run, blocks)


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
        assert_close(means_of(model, blocks, mixed(samples, owners, groups)), expected)


def test_every_sample_may_be_a_target_of_its_own(model, blocks):
    samples, order = items(), [[7, 2, 0], [1, 3, 4, 6, 5]]
    assert_close(means_of(model, blocks, mixed(samples, range(8), order)), loop(model, samples, blocks))


def test_batches_cut_where_memory_is_short_keep_their_owners(model, blocks):
    samples, targets = items(), mixed(items(), range(8), [[7, 2, 0], [1, 3, 4, 6, 5]])
    assert_close(means_of(model, blocks, targets, budget=Budget(tokens=1)), loop(model, samples, blocks))


def test_plans_of_targets_make_one_stream_in_their_order(model, blocks):
    sets = {"b": items()[:3], "a": items()[3:4], "c": items()[4:]}
    joint = Targets.of({name: tiny_plan(samples) for name, samples in sets.items()})
    assert list(joint) == ["b", "a", "c"] and len(joint) == 3 and Targets.of(joint) is joint
    assert_close(means_of(model, blocks, joint), loop_means(model, sets, blocks))


def test_sets_are_taken_apart_into_their_samples_and_batched_anew(model, blocks):
    sets = {"b": items()[:3], "a": items()[3:]}
    joint = Targets.of({"b": tiny_plan(sets["b"], positions=[2, 0]), "a": tiny_plan(sets["a"])})
    single = joint.apart([sample.uid for sample in items()]).rebatched([[7, 2, 0], [3, 4, 6, 5]])
    assert list(single) == ["b:10", "b:16", "a:19", "a:22", "a:25", "a:28", "a:31"]
    used = [sample for sample in items() if sample.uid != 13]
    assert_close(means_of(model, blocks, single), loop(model, used, blocks))
    with pytest.raises(ValueError, match="target c: .* without usable samples"):
        Targets.of({"b": tiny_plan(sets["b"]), "c": tiny_plan([])}).apart(range(3))


def test_a_part_of_a_data_set_is_a_target_too(model, blocks):
    samples = items()
    joint = Targets.of({"some": tiny_plan(samples, positions=[1, 4]), "others": tiny_plan(samples, positions=[4, 6])})
    expected = loop_means(model, {"some": [samples[1], samples[4]], "others": [samples[4], samples[6]]}, blocks)
    assert_close(means_of(model, blocks, joint), expected)


def test_a_sample_that_is_not_finite_is_named_with_its_target(model, blocks):
    samples = items()
    samples[4] = broken(samples[4], "loss")
    with pytest.raises(ValueError, match="target t1: sample 22: the loss is not finite; remove it"):
        means_of(model, blocks, mixed(samples, [0, 0, 2, 2, 1, 0, 0, 0], [[3, 0, 7, 4], [1, 2, 6, 5]]))
    with pytest.raises(ValueError, match="target t5: sample 25: the gradient is not finite"):
        means_of(model, blocks, mixed(items(), range(8), [list(range(8))]), exploding(25))


def test_a_target_without_samples_is_refused_by_name(model, blocks):
    with pytest.raises(ValueError, match="target t1: .* without usable samples"):
        means_of(model, blocks, mixed(items(), [0, 2, 0, 0, 0, 0, 0, 0], [[0, 1]]))
    with pytest.raises(ValueError, match="no target"):
        Targets.of({})


def test_scores_of_single_targets_are_those_of_one_set_each(model, blocks, tmp_path):
    samples, plan = items(), tiny_plan(items())
    scorers = [TracIn(), DataInf(), LiSSA(), Exact()]
    single = {f"t{i}": tiny_plan([sample]) for i, sample in enumerate(samples)}
    found, expected = (
        score_pool(job(model, blocks), plan, Streams(plan, plan, targets), scorers, tmp_path / name)
        for name, targets in (("joint", mixed(samples, range(8), [[7, 2, 0], [1, 3, 4, 6, 5]])), ("apart", single))
    )
    assert found.names == expected.names and found.scores.shape == (32, 8)
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-8, atol=1e-10)


def test_directions_are_named_after_scorer_and_target(model, blocks, tmp_path):
    plan = tiny_plan(items())
    streams = Streams(plan, plan, mixed(items(), range(8), [list(range(8))]))
    found = find_directions(job(model, blocks), streams, [TracIn()], tmp_path)
    assert found.names == tuple(("TracIn", f"t{i}") for i in range(8))
