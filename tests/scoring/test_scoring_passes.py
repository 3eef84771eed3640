"""Streamed scores against dense gradients of a batch-of-one loop, and what must not change them."""

import pytest
import torch
from tiny_models import tiny_vlm, wake_lora
from tiny_pool import COLLATE, Run, broken, exploding, loop, loop_means, scores_by_hand, tiny_items

from vlmsel.gradients import select_blocks
from vlmsel.scorers import DataInf, Exact, HyperINF, LiSSA, Random, TracIn
from vlmsel.scoring.arrays import score_gradients
from vlmsel.scoring.curvature import _mean_squares, precondition
from vlmsel.scoring.score_pass import ScoreReducer

SCORERS = [
    TracIn(),
    TracIn(block_scale=True, name="TracIn.scaled"),
    DataInf(),
    LiSSA(),
    HyperINF(),
    HyperINF(damping=10.0, side="short", solver="cholesky", name="short"),
    Exact(),
]


def vlm(dtype):
    model = tiny_vlm(dtype=dtype)
    wake_lora(model)
    return model


@pytest.fixture(scope="module")
def exact_model():
    return vlm(torch.float64)


@pytest.fixture(scope="module")
def model():
    return vlm(torch.float32)


def goals(dtype=torch.float32):
    return {"one": tiny_items([1, 2, 0], dtype, seed=1), "text": tiny_items([0, 0], dtype, seed=2)}


def scored(model, items, out, scorers=SCORERS, targets=None, **more):
    """Scores by column name and uid, losses by uid, and what was left out."""
    targets = goals(next(model.projector.parameters()).dtype) if targets is None else targets
    found = Run(model, items, targets, **more).score(scorers, out)
    order = found.uids.argsort()
    columns = {f"{s}/{t}": column[order] for (s, t), column in zip(found.names, found.scores, strict=True)}
    return columns, found.losses[order], found.left_out


def mean_gradients(model, items, losses=None):
    run = Run(model, items, {"target": items}, losses=losses)
    return {name: mean[0] for name, mean in run.targets.v().items()}


def score_batch(model, items, stacks):
    run = Run(model, items, {"any": items}, batch_size=len(items))
    with run.pool.passing(ScoreReducer(stacks)) as read:
        ((found,),) = read([0])
    return found.scores[:, found.uids.argsort()]


def assert_near(found, expected, tolerance):
    assert list(found) == list(expected)
    for name, column in expected.items():
        scale = column[torch.isfinite(column)].abs().max().item()
        torch.testing.assert_close(found[name], column, rtol=0, atol=tolerance * scale, equal_nan=True, msg=name)


def assert_near_in_float32(found, expected):
    """Compare to 1e-5; the inverses at a damping of 0.1 multiply rounding by up to their condition number."""
    for name, column in expected.items():
        tolerance = {"HyperINF": 1e-3, "Exact": 1e-4}.get(name.split("/")[0], 1e-5)
        assert_near({name: found[name]}, {name: column}, tolerance)


@pytest.mark.parametrize("spec", ["projector+lora", "last-block"])
def test_streamed_scores_equal_dense_ones(exact_model, spec, tmp_path):
    items, targets = tiny_items(dtype=torch.float64), goals(torch.float64)
    blocks = select_blocks(exact_model, spec)
    gradients, means = loop(exact_model, items, blocks), loop_means(exact_model, targets, blocks)
    dense = {s.name: score_gradients(gradients, means, s) for s in SCORERS}
    expected = {f"{name}/{t}": rows[i] for name, rows in dense.items() for i, t in enumerate(targets)}
    columns, losses, left_out = scored(exact_model, items, tmp_path, spec=spec)
    assert_near(columns, expected, 1e-8)
    singles = [exact_model.losses(COLLATE([item])).item() for item in items]
    assert losses.tolist() == pytest.approx(singles, rel=1e-6) and not left_out


def test_curvature_of_a_part_of_the_pool(exact_model, tmp_path):
    items, fit = tiny_items(dtype=torch.float64), [0, 3, 4, 6]
    blocks = select_blocks(exact_model, "projector+lora")
    gradients = loop(exact_model, items, blocks)
    means = loop_means(exact_model, goals(torch.float64), blocks)
    dense = {s.name: scores_by_hand(gradients, means, s, fit) for s in SCORERS}
    expected = {f"{name}/{t}": rows[i] for name, rows in dense.items() for i, t in enumerate(["one", "text"])}
    columns, _, _ = scored(exact_model, items, tmp_path, fit=fit)
    assert_near(columns, expected, 1e-8)
    whole, _, _ = scored(exact_model, items, tmp_path / "whole")
    assert not torch.allclose(whole["Exact/one"], columns["Exact/one"], rtol=1e-3)


@pytest.mark.parametrize("batch_size", [1, pytest.param(2, marks=pytest.mark.slow), 8])
def test_batch_size_changes_nothing_but_rounding(model, batch_size, tmp_path):
    expected, _, _ = scored(model, tiny_items(), tmp_path / "a")
    found, _, _ = scored(model, tiny_items(), tmp_path / "b", batch_size=batch_size)
    assert_near_in_float32(found, expected)


def test_order_of_the_pool_changes_nothing_but_rounding(model, tmp_path):
    items = tiny_items()
    expected, _, _ = scored(model, items, tmp_path / "a")
    found, _, _ = scored(model, [items[i] for i in (5, 2, 7, 0, 6, 3, 1, 4)], tmp_path / "b")
    assert_near_in_float32(found, expected)


def test_padding_changes_nothing_but_rounding(exact_model, model):
    for one, tolerance in ((exact_model, 1e-10), (model, 1e-5)):
        dtype = next(one.projector.parameters()).dtype
        items = tiny_items(dtype=dtype)
        stacks = {name: gradient[None] for name, gradient in mean_gradients(one, items).items()}
        short, long = items[0], items[3]
        alone, padded = score_batch(one, [short], stacks), score_batch(one, [short, long], stacks)
        assert len(long.input_ids) > len(short.input_ids)
        assert padded[0, 0].item() == pytest.approx(alone[0, 0].item(), rel=tolerance)


@pytest.mark.parametrize("how", ["loss", "pixels"])
@pytest.mark.parametrize("batch_size", [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 8))])
def test_a_sample_that_is_not_finite_is_reported_and_moves_no_other(exact_model, how, batch_size, tmp_path):
    items = tiny_items(dtype=torch.float64)
    clean = [item for i, item in enumerate(items) if i != 3]
    mixed = [*items[:3], broken(items[3], how), *items[4:]]
    expected, _, _ = scored(exact_model, clean, tmp_path / "a")
    found, losses, left_out = scored(exact_model, mixed, tmp_path / "b", batch_size=batch_size)
    assert left_out == {items[3].uid: "the loss is not finite"}
    assert torch.isnan(losses).nonzero().tolist() == [[3]]
    assert all(torch.isnan(column).nonzero().tolist() == [[3]] for column in found.values())
    keep = [0, 1, 2, 4, 5, 6, 7]
    assert_near({name: column[keep] for name, column in found.items()}, expected, 1e-8)


def test_a_gradient_that_is_not_finite_is_reported(exact_model, tmp_path):
    items, targets = tiny_items(dtype=torch.float64), goals(torch.float64)
    clean, _, _ = scored(exact_model, items[:-1], tmp_path / "a")
    columns, losses, left_out = scored(exact_model, items, tmp_path / "b", targets=targets, losses=exploding(31))
    assert left_out == {31: "the gradient is not finite"} and torch.isfinite(losses).all()
    assert all(torch.isnan(column[-1]) for column in columns.values())
    assert_near({name: column[:-1] for name, column in columns.items()}, clean, 1e-8)


def test_a_target_must_be_finite(exact_model, tmp_path):
    items = tiny_items(dtype=torch.float64)
    with pytest.raises(ValueError, match="sample 16: the gradient is not finite; remove it"):
        mean_gradients(exact_model, items, exploding(16))
    items[4] = broken(items[4], "loss")
    with pytest.raises(ValueError, match="target spoilt: sample 22: the loss is not finite; remove it"):
        Run(exact_model, items, {"good": items[:2], "spoilt": items}).score([TracIn()], tmp_path)


def test_an_empty_target_has_no_gradient(model):
    with pytest.raises(ValueError, match="target empty: .* without usable samples"):
        Run(model, tiny_items(), {"empty": []})


def test_mean_squares_are_those_of_dense_gradients(exact_model):
    items = tiny_items(dtype=torch.float64)
    run = Run(exact_model, items, {"any": items[:1]})
    found, left_out = _mean_squares(run.pool, [DataInf()])
    assert not left_out and _mean_squares(run.pool, [HyperINF(), Exact()]) == ({}, {})
    for name, dense in loop(exact_model, items, run.blocks).items():
        assert found[name] == pytest.approx(dense.square().mean().item(), rel=1e-10), name


def test_damping_cannot_be_measured_on_samples_that_are_all_broken(model):
    run = Run(model, [broken(item, "loss") for item in tiny_items([0, 1])], {"any": tiny_items([1])}, spec="lora")
    with pytest.raises(ValueError, match="no sample with a finite gradient"):
        precondition(run.targets, run.fit, [DataInf()])


def test_without_scorers_of_gradients_there_are_losses_alone(model, tmp_path):
    columns, losses, left_out = scored(model, tiny_items(), tmp_path, scorers=[Random(seed=3)])
    assert not columns and torch.isfinite(losses).all() and not left_out
