"""K-FAC, EK-FAC and the two-sided GFIM against dense Kronecker products and their inverses, token by token."""

from dataclasses import replace

import naive_scorers as naive
import pytest
import torch

from vlmsel import score_gradients
from vlmsel.gradients import Factor, LookupFactor, OuterFactor
from vlmsel.scorers import EKFAC, KFAC, BlockTargets, Exact, TwoSided
from vlmsel.scorers.kronecker import TokenMoments
from vlmsel.scoring.curvature import FitSources, Preconditioned, Targets, precondition
from vlmsel.scoring.source import ArraySource

SHAPES = [(4, 3), (3, 5), (1, 4)]
EYE = {"dtype": torch.float64}


def tokens(rows, cols, n=9, t=4):
    """δ and x of samples of one to four tokens; the rest is padding, which x does not say."""
    delta, x = naive.draw(n, t, rows, seed=1), naive.draw(n, t, cols, seed=2)
    for sample in range(n):
        delta[sample, 1 + sample % t :] = 0
    return delta, x


def naive_moments(delta, x):
    """S and A over real tokens, and tokens per sample."""
    pairs = [(d, y) for ds, ys in zip(delta, x, strict=True) for d, y in zip(ds, ys, strict=True) if d.abs().sum() > 0]
    s, a = (sum(torch.outer(one, one) for one in side) / len(pairs) for side in zip(*pairs, strict=True))
    return s, a, len(pairs) / len(delta)


def naive_kfac(delta, x, v, damping):
    gradients = delta.mT @ x
    s, a, per_sample = naive_moments(delta, x)
    lam = damping * naive.mean_square(gradients)
    curvature = per_sample * torch.kron(s, a) + lam * torch.eye(v.numel(), **EYE)
    return (torch.linalg.inv(curvature) @ v.flatten()).reshape(v.shape)


def naive_ekfac(delta, x, v, damping):
    gradients = delta.mT @ x
    s, a, _ = naive_moments(delta, x)
    basis = torch.kron(torch.linalg.eigh(s)[1], torch.linalg.eigh(a)[1])
    turned = torch.stack([basis.T @ g.flatten() for g in gradients])
    lam = damping * naive.mean_square(gradients)
    curvature = basis @ torch.diag(sum(one**2 for one in turned) / len(turned)) @ basis.T
    return torch.linalg.solve(curvature + lam * torch.eye(v.numel(), **EYE), v.flatten()).reshape(v.shape)


def naive_two_sided(delta, x, v, damping):
    gradients = delta.mT @ x
    r, c = (naive.gfim(gradients, side) for side in ("rows", "cols"))
    lam = damping * naive.mean_square(gradients)
    curvature = torch.kron(r, c) / torch.trace(r) + lam * torch.eye(v.numel(), **EYE)
    return torch.linalg.solve(curvature, v.flatten()).reshape(v.shape)


TWINS = [(KFAC(0.3), naive_kfac), (EKFAC(0.3), naive_ekfac), (TwoSided(0.3), naive_two_sided)]


def source_of(factors):
    """A source of factors that are not formed, as one batch."""
    source = ArraySource({name: factor.dense() for name, factor in factors.items()})
    source.factors = factors
    return source


def run(scorers, factors, v, folder=None):
    source, names = source_of(factors), tuple("ab"[: len(next(iter(v.values())))])
    return precondition(Targets(names, lambda: v), FitSources(source, source), scorers, folder)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("scorer", "twin"), TWINS, ids=["kfac", "ekfac", "two-sided"])
def test_they_are_the_inverse_of_dense_kronecker_products(scorer, twin, shape):
    delta, x = tokens(*shape)
    targets = naive.draw(2, *shape, seed=4)
    found = run([scorer, replace(scorer, damping=30.0, name="more")], {"w": OuterFactor(delta, x)}, {"w": targets})
    for damping, part in zip((0.3, 30.0), found.stacks["w"].split(2), strict=True):
        expected = torch.stack([twin(delta, x, v, damping) for v in targets])
        torch.testing.assert_close(part, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("scorer", "twin"), TWINS, ids=["kfac", "ekfac", "two-sided"])
def test_their_norm_is_the_square_of_what_is_preconditioned(scorer, twin, tmp_path):
    delta, x = tokens(3, 5)
    factor = OuterFactor(delta, x)
    moments = TokenMoments(BlockTargets(factor.dense()))
    moments.update(factor)
    statistic = scorer.statistic(BlockTargets(factor.dense(), None, moments.basis()))
    statistic.update(factor)
    expected = torch.tensor([naive.dot(twin(delta, x, g, 0.3), g) for g in factor.dense()], **EYE)
    metric = scorer.metric(statistic)
    for form in (factor, Factor.from_dense(factor.dense())):
        torch.testing.assert_close(metric.squares(form), expected, rtol=1e-8, atol=1e-10)
    assert not metric.plain and len(metric.squares(factor.select(slice(0, 0)))) == 0
    h = Preconditioned((), {}, {}, metrics={"S": {"w": metric}})
    h.save(tmp_path / "h.safetensors")
    again = Preconditioned.load(tmp_path / "h.safetensors").metrics["S"]["w"]
    torch.testing.assert_close(again.squares(factor), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("scorer", [KFAC(), EKFAC(), TwoSided()], ids=repr)
def test_one_token_of_one_sample_makes_them_exact(scorer):
    """Where the FIM is one outer product of outer products, it is a Kronecker product."""
    factor = OuterFactor(naive.draw(1, 1, 3, seed=1), naive.draw(1, 1, 5, seed=2))
    v = naive.draw(2, 3, 5, seed=3)
    found, exact = (run([one], {"w": factor}, {"w": v}).stacks["w"] for one in (scorer, Exact()))
    torch.testing.assert_close(found, exact, rtol=1e-7, atol=1e-9)


def test_padding_and_what_is_read_there_do_not_count():
    delta, x = tokens(3, 5)
    longer = torch.cat([delta, torch.zeros(9, 3, 3, **EYE)], 1), torch.cat([x, 1e3 * naive.draw(9, 3, 5)], 1)
    v = {"w": naive.draw(1, 3, 5, seed=3)}
    found = [run([KFAC(), EKFAC()], {"w": OuterFactor(*pair)}, v).stacks["w"] for pair in ((delta, x), longer)]
    torch.testing.assert_close(*found)


def test_scorers_that_need_no_tokens_get_the_same_gradients_beside_them():
    factor, v = OuterFactor(*tokens(3, 5)), {"w": naive.draw(2, 3, 5, seed=3)}
    beside, alone = (run(scorers, {"w": factor}, v).stacks["w"][-2:] for scorers in ([KFAC(), Exact()], [Exact()]))
    torch.testing.assert_close(beside, alone)


@pytest.mark.parametrize(
    ("factor", "what"),
    [
        (Factor.from_dense(torch.ones(2, 3, 5)), "has formed gradients"),
        (LookupFactor(torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, 1, 5), 3), "table of embeddings"),
    ],
)
def test_gradients_without_tokens_are_refused_with_a_mend(factor, what):
    with pytest.raises(ValueError, match=rf"a block \[3, 5\] .*{what}.*use TwoSided"):
        KFAC().statistic(BlockTargets(torch.ones(1, 3, 5))).update(factor)


def test_one_row_blocks_take_formed_gradients_as_one_token():
    gradients, v = naive.draw(6, 1, 4, seed=1), naive.draw(1, 1, 4, seed=2)
    found = score_gradients({"b": gradients}, {"b": v}, KFAC(damping=0.3))
    exact = score_gradients({"b": gradients}, {"b": v}, Exact(damping=0.3))
    torch.testing.assert_close(found, exact)


def test_the_basis_must_be_found_before_the_pass():
    with pytest.raises(ValueError, match="EKFAC needs the block's eigenbasis"):
        EKFAC().statistic(BlockTargets(torch.zeros(1, 2, 2)))


@pytest.mark.parametrize("scorer", [KFAC(1e-3), TwoSided(1e-3)], ids=repr)
def test_thousands_of_batches_are_summed_as_one(scorer):
    """Inputs with a large part in common: a float32 sum would round the small directions off, batch by batch."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 1, 24, generator=generator) + 30
    factor = OuterFactor(torch.randn(4000, 1, 24, generator=generator), x)
    v = factor.dense()[:2]
    batches, whole = scorer.statistic(BlockTargets(v)), scorer.statistic(BlockTargets(v.double()))
    for start in range(0, 4000, 2):
        batches.update(factor.select(slice(start, start + 2)))
    whole.update(OuterFactor(factor.left.double(), factor.right.double()))
    found, expected = scorer.solve(batches, v).h.double(), scorer.solve(whole, v.double()).h
    assert (found - expected).norm() < 1e-4 * expected.norm()
