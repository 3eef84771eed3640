"""Cholesky, Woodbury, rank-one inverses and the Neumann series against plain linear algebra in float64."""

import pytest
import torch
from naive_scorers import draw

from vlmsel.solvers import cholesky, neumann, sherman_morrison, woodbury


def test_cholesky_solves_the_system():
    root, b = draw(6, 6), draw(6, 2, seed=1)
    a = root @ root.T + 0.1 * torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close(a @ cholesky.solve(a, b), b)


@pytest.mark.parametrize("a", [[[1.0, 2.0], [2.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]], [[float("nan"), 0.0], [0.0, 1.0]]])
def test_cholesky_refuses_what_is_not_positive_definite(a):
    with pytest.raises(ValueError, match=r"\[2, 2\] is not positive definite in float32"):
        cholesky.solve(torch.tensor(a), torch.ones(2, 1))


@pytest.mark.parametrize("n, d", [(1, 5), (3, 8), (8, 8), (12, 4)])
def test_woodbury_is_the_solution_in_parameter_space(n, d):
    g, v, damping = draw(n, d), draw(3, d, seed=1), 0.05
    a = g.T @ g / n + damping * torch.eye(d, dtype=torch.float64)
    torch.testing.assert_close(woodbury.solve(g, damping, v), torch.linalg.solve(a, v.T).T)


def test_weights_give_the_mean_of_rank_one_inverses():
    g, v, damping = draw(4, 6), draw(2, 6, seed=1), 0.3
    eye = torch.eye(6, dtype=torch.float64)
    inverses = [torch.linalg.inv(torch.outer(x, x) + damping * eye) for x in g]
    expected = sum(v @ inverse for inverse in inverses) / len(g)
    w = sherman_morrison.weights(v @ g.T, g.square().sum(1), damping)
    torch.testing.assert_close((v - w @ g / len(g)) / damping, expected)


def test_a_zero_gradient_weighs_nothing_even_undamped():
    w = sherman_morrison.weights(torch.tensor([[0.0, 4.0]]), torch.tensor([0.0, 2.0]), damping=0.0)
    assert w.tolist() == [[0.0, 2.0]]


def test_neumann_repeats_the_recursion_and_tends_to_the_inverse():
    root, v = draw(5, 5), draw(5, seed=1)
    h = root @ root.T + 0.5 * torch.eye(5, dtype=torch.float64)
    s = 1 / float(h.trace())
    r = s * v
    for _ in range(7):
        r = s * v + r - s * (h @ r)
    torch.testing.assert_close(neumann.solve(lambda x: h @ x, v, s, depth=7), r)
    torch.testing.assert_close(neumann.solve(lambda x: h @ x, v, s, depth=3000), torch.linalg.solve(h, v))
    assert torch.equal(neumann.solve(lambda x: h @ x, v, s, depth=0), s * v)
