"""Projected factors against A g Bᵀ of formed gradients; the matrices are a function of seed and name."""

from dataclasses import replace

import pytest
import torch

from vlmsel.gradients import Block, DenseFactor, LookupFactor, OuterFactor, SumFactor
from vlmsel.gradients.projection import Matrices, Projection, projected


def random_factors(dtype=torch.float64, n=3, t=4, rows=7, cols=11):
    generator = torch.Generator().manual_seed(2)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    outer = OuterFactor(normal(n, t, rows), normal(n, t, cols))
    lookup = LookupFactor(torch.randint(rows, (n, t), generator=generator), normal(n, t, cols), rows)
    return {"outer": outer, "lookup": lookup, "sum": SumFactor([outer, lookup]), "dense": DenseFactor(outer.dense())}


@pytest.mark.parametrize("kind", ["outer", "lookup", "sum", "dense"])
@pytest.mark.parametrize("kept", [(3, 5), (3, 99), (99, 5), (99, 99), (7, 11)])
def test_projected_factors_are_factors_of_projected_gradients(kind, kept):
    factor, block, projection = random_factors()[kind], Block("w", "", 7, 11), Projection(*kept)
    matrices = projection.matrices(block)
    a = torch.eye(7) if matrices.rows is None else matrices.rows
    b = torch.eye(11) if matrices.cols is None else matrices.cols
    expected = torch.einsum("kr,nrc,lc->nkl", a.double(), factor.dense(), b.double())
    found = projected(factor, matrices.to(factor.values))
    assert (found.rows, found.cols) == projection.shape(7, 11) == (min(7, kept[0]), min(11, kept[1]))
    torch.testing.assert_close(found.dense(), expected, rtol=1e-12, atol=1e-12)
    if kept[0] >= 7 and kept[1] >= 11:
        assert found is factor


@pytest.mark.parametrize("kind", ["outer", "lookup", "sum", "dense"])
@pytest.mark.parametrize("sides", ["rows", "cols", "both"])
def test_a_vector_stands_for_a_diagonal_matrix(kind, sides):
    generator, factor = torch.Generator().manual_seed(5), random_factors()[kind]
    a = torch.rand(7, generator=generator, dtype=torch.float64) if sides != "cols" else None
    b = torch.rand(11, generator=generator, dtype=torch.float64) if sides != "rows" else None
    expected = factor.dense().clone()
    for i in range(7):
        for j in range(11):
            expected[:, i, j] *= (1 if a is None else a[i]) * (1 if b is None else b[j])
    found = projected(factor, Matrices(a, b))
    assert type(found) is type(factor)
    torch.testing.assert_close(found.dense(), expected, rtol=1e-12, atol=1e-12)


def test_factors_without_samples_or_tokens_are_projected():
    matrices = Projection(3, 5).matrices(Block("w", "", 7, 11))
    for factor in (OuterFactor(torch.zeros(2, 0, 7), torch.zeros(2, 0, 11)), DenseFactor(torch.zeros(0, 7, 11))):
        assert projected(factor, matrices).dense().shape == (factor.samples, 3, 5)


@pytest.mark.parametrize("kept", [(4, 6), (4, 99), (99, 6)])
def test_projection_keeps_inner_products_on_average(kept):
    """The mean over 4000 seeds lies within four of its standard errors, and these are small."""
    g, h = random_factors()["dense"].dense()[:2]
    block, found = Block("w", "", 7, 11), []
    for seed in range(4000):
        matrices = Projection(*kept, seed=seed).matrices(block).to(g)
        small = projected(DenseFactor(torch.stack([g, h])), matrices).dense()
        found.append([(small[0] * small[1]).sum(), (small[0] * small[0]).sum()])
    found = torch.tensor(found)
    for values, exact in zip(found.T, [(g * h).sum(), (g * g).sum()], strict=True):
        error = values.std().item() / len(values) ** 0.5
        assert abs(values.mean().item() - exact.item()) < 4 * error < 0.1 * (g * g).sum().item()


def test_matrices_depend_on_seed_and_name_alone():
    block, projection = Block("w", "m", 70, 110), Projection(3, 5, seed=1)
    torch.manual_seed(5)
    first, state = projection.matrices(block), torch.get_rng_state()
    again = Projection(3, 9, seed=1).matrices(replace(block, module="other"))
    assert torch.equal(first.rows, again.rows) and torch.equal(torch.get_rng_state(), state)
    for other in (replace(projection, seed=2).matrices(block), projection.matrices(replace(block, name="v"))):
        assert not torch.isclose(first.rows, other.rows).any() and not torch.isclose(first.cols, other.cols).any()
    square = Projection(3, 3).matrices(Block("w", "", 8, 8))
    assert not torch.isclose(square.rows, square.cols).any()
    assert first.rows.dtype == torch.float32 and first.cols.std().item() == pytest.approx(5**-0.5, rel=0.1)


def test_matrices_stay_what_they_were():
    """Numbers of a fixed seed: stores written elsewhere and resumed here have to agree."""
    matrices = Projection(2, 2, seed=0).matrices(Block("w", "", 3, 3))
    torch.testing.assert_close(matrices.rows, torch.tensor(ROWS), rtol=0, atol=1e-7)


ROWS = [[0.4702086, 1.0963106, -0.1782979], [0.0586637, 0.2415517, 0.1932937]]


@pytest.mark.parametrize("sizes", [(0, 4), (4, -1), (2.5, 4)])
def test_sizes_of_a_projection_are_checked(sizes):
    with pytest.raises(ValueError, match="must be a whole number above 0"):
        Projection(*sizes)
