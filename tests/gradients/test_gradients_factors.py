"""Factors against formed gradients: every operation, both routes, small memory; the counts that choose a route."""

import pytest
import torch

from vlmsel.gradients import factors as factors_module
from vlmsel.gradients.embedding_factor import LookupFactor
from vlmsel.gradients.factors import DenseFactor, Factor, OuterFactor
from vlmsel.gradients.routes import cheaper, gram_route, inner_route, norm_route, sum_route
from vlmsel.gradients.sum_factor import SumFactor, merge

SHAPES = [(3, 1, 4, 6), (3, 2, 9, 2), (2, 30, 3, 4), (4, 5, 1, 7), (2, 0, 3, 4), (0, 3, 3, 4)]  # n, t, rows, cols


def outer(n, t, rows, cols, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(n, t, d, generator=generator, dtype=torch.float64) for d in (rows, cols))
    return OuterFactor(left.to(dtype), right.to(dtype))


def lookup(n, t, rows, cols):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, rows, (n, t), generator=generator)
    return LookupFactor(ids, torch.randn(n, t, cols, generator=generator, dtype=torch.float64), rows)


def both(n, t, rows, cols):
    return SumFactor([outer(n, t, rows, cols), lookup(n, t, rows, cols)])


def dense(n, t, rows, cols):
    return DenseFactor(outer(n, t, rows, cols).dense())


def check(factor: Factor) -> None:
    g = factor.dense()
    n, rows, cols = g.shape
    assert (factor.samples, factor.rows, factor.cols) == (n, rows, cols)
    generator = torch.Generator().manual_seed(2)
    for k in (0, 1, 3, 9):
        targets = torch.randn(k, rows, cols, generator=generator, dtype=torch.float64)
        weights = torch.randn(k, n, generator=generator, dtype=torch.float64)
        torch.testing.assert_close(factor.inner(targets), torch.einsum("krc,nrc->kn", targets, g))
        torch.testing.assert_close(factor.weighted_sum(weights), torch.einsum("kn,nrc->krc", weights, g))
    torch.testing.assert_close(factor.sq_norm(), g.square().sum((1, 2)))
    torch.testing.assert_close(factor.gram("cols"), torch.einsum("nrc,nrd->cd", g, g))
    torch.testing.assert_close(factor.gram("rows"), torch.einsum("nrc,nsc->rs", g, g))
    assert (factor.sq_bound() >= factor.sq_norm() * (1 - 1e-12)).all()
    assert factor.finite().tolist() == [True] * n


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("make", [outer, lookup, both, dense])
def test_every_operation_equals_that_on_formed_gradients(make, shape):
    check(make(*shape))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("make", [outer, lookup, both])
def test_small_pieces_change_nothing(make, shape, monkeypatch):
    monkeypatch.setattr(factors_module, "LIMIT", 20)
    check(make(*shape))


@pytest.mark.parametrize("route", ["tokens", "dense"])
@pytest.mark.parametrize("shape", SHAPES)
def test_both_routes_agree(route, shape, monkeypatch):
    for name in ("inner_route", "norm_route", "gram_route", "sum_route"):
        monkeypatch.setattr(factors_module, name, lambda *counts, **named: route)
    check(outer(*shape))


@pytest.mark.parametrize(
    "choose", [lambda t: inner_route(t, 64, 64, 1), lambda t: norm_route(t, 64, 64), lambda t: gram_route(t, 64, 64)]
)
def test_few_tokens_go_token_by_token_and_many_form_the_gradient(choose):
    routes = [choose(t) for t in (1, 8, 4096)]
    assert routes[0] == "tokens" and routes[-1] == "dense"


def test_many_targets_or_sums_form_the_gradient():
    assert [inner_route(10, 64, 64, k) for k in (1, 50)] == ["tokens", "dense"]
    assert [sum_route(10, 64, 64, k) for k in (1, 50)] == ["tokens", "dense"]
    assert cheaper(2, 2) == "tokens"


def test_the_count_of_multiply_adds_is_right_at_the_point_where_the_choice_flips():
    rows, cols = 8, 32
    flips = [t for t in range(1, 100) if inner_route(t, rows, cols, 1) == "dense"]
    # tokens: t r c + t min(r, c); dense: t r c + r c
    assert flips[0] == rows * cols // min(rows, cols) + 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_is_cast_up(dtype):
    factor = outer(2, 3, 4, 5, dtype)
    assert factor.dense().dtype == factor.sq_norm().dtype == factor.gram("cols").dtype == torch.float32
    assert factor.inner(torch.ones(1, 4, 5, dtype=torch.float64)).dtype == torch.float32
    exact = factor.left.double().mT @ factor.right.double()
    torch.testing.assert_close(factor.dense().double(), exact, rtol=1e-5, atol=1e-6)
    assert Factor.from_dense(factor.dense().to(dtype)).dense().dtype == torch.float32


@pytest.mark.parametrize("make", [outer, lookup, both, dense])
def test_selecting_samples(make):
    factor, keep = make(3, 2, 4, 5), torch.tensor([True, False, True])
    torch.testing.assert_close(factor.select(keep).dense(), factor.dense()[keep])
    assert factor.select(~keep).samples == 1
    check(factor.select(keep))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_a_gradient_that_is_not_finite_is_marked_and_no_other(value):
    factor = outer(3, 2, 4, 5)
    factor.right[1, 0, 0] = value
    assert factor.finite().tolist() == [True, False, True]
    found = DenseFactor(factor.dense()).finite()
    assert found.tolist() == [True, False, True]
    table = lookup(3, 2, 4, 5)
    table.delta[2, 0, 0] = value
    assert table.finite().tolist() == [True, True, False]
    assert SumFactor([factor, table]).finite().tolist() == [True, False, False]


def test_a_loose_bound_does_not_condemn_a_finite_gradient():
    left, right = torch.zeros(1, 2, 1), torch.full((1, 2, 1), 1e20)
    left[0, :, 0] = torch.tensor([1e10, -1e10])  # the two tokens cancel; the bound on the squared norm overflows
    factor = OuterFactor(left, right)
    assert factor.sq_bound().isinf().all() and factor.finite().tolist() == [True]


def test_merging_adds_up():
    parts = [outer(2, 3, 4, 5), outer(2, 1, 4, 5), lookup(2, 3, 4, 5), dense(2, 2, 4, 5), dense(2, 3, 4, 5)]
    merged = merge(parts)
    torch.testing.assert_close(merged.dense(), sum(part.dense() for part in parts))
    assert [type(part) for part in merged.parts] == [OuterFactor, LookupFactor, DenseFactor]
    assert merge(parts[:2]).tokens == 4
    check(merged)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: f.inner(torch.ones(4, 5)), r"targets have shape \[4, 5\]; expected \[k, 4, 5\]"),
        (lambda f: f.inner(torch.ones(1, 5, 4)), r"targets have shape \[1, 5, 4\]"),
        (lambda f: f.weighted_sum(torch.ones(1, 3)), r"weights have shape \[1, 3\]; expected \[k, 2\]"),
        (lambda f: f.gram("left"), "side is 'left'"),
        (lambda f: Factor.from_dense(torch.ones(4, 5)), r"\[samples, rows, cols\]"),
        (lambda f: OuterFactor(torch.ones(2, 3, 4), torch.ones(2, 2, 5)), "factors have shapes"),
        (lambda f: LookupFactor(torch.ones(2, 3), torch.ones(2, 4, 5), 9), "ids have shape"),
    ],
)
def test_wrong_shapes_are_named(call, message, unchecked):
    with pytest.raises(ValueError, match=message):
        call(outer(2, 3, 4, 5))


@pytest.mark.parametrize("common", [0, 30, 1e4])
def test_norms_hold_where_tokens_cancel(common):
    """As in key projections without rotary positions: Σ_t δ_t = 0, and inputs have a part in common."""
    generator = torch.Generator().manual_seed(0)
    left, noise, part = (torch.randn(*s, 64, generator=generator).double() for s in ((40, 12), (40, 12), (1, 1)))
    factor = OuterFactor((left - left.mean(1, keepdim=True)).float(), (noise + common * part).float())
    assert norm_route(12, 64, 64) == "tokens"
    expected = (factor.left.double().mT @ factor.right.double()).square().sum((1, 2))
    torch.testing.assert_close(factor.sq_norm().double(), expected, rtol=2e-5 if common < 1e3 else 2e-3, atol=0)


def test_samples_without_a_gradient_are_not_formed_for_their_norm(monkeypatch):
    factor = OuterFactor(torch.zeros(3, 2, 16), torch.ones(3, 2, 16))
    monkeypatch.setattr(OuterFactor, "dense", lambda self: pytest.fail("formed"))
    assert norm_route(2, 16, 16) == "tokens" and factor.sq_norm().tolist() == [0, 0, 0]
