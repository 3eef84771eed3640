"""Refinement: a rough inverse in float32 solves as float64 does, and one that does not help is told."""

import pytest
import torch
from naive_scorers import draw

from vlmsel.solvers import refinement


def system(d=30, condition=1e4, targets=3, rows=2):
    """A in float64 with eigenvalues from 1 down to 1/condition, and right-hand sides [targets, rows, d]."""
    q = torch.linalg.qr(draw(d, d, seed=1)).Q
    sizes = torch.logspace(0, 1, d, base=1 / condition, dtype=torch.float64)
    return (q * sizes) @ q.T, draw(targets, rows, d, seed=2)


def rough(a, off, seed=3):
    """x -> B x in float32, with B = A⁻¹ (I + E) and ‖E‖ = off."""
    e = draw(*a.shape, seed=seed)
    b = (torch.linalg.inv(a) @ (torch.eye(len(a), dtype=a.dtype) + off * e / torch.linalg.matrix_norm(e, 2))).float()
    return lambda rows: rows @ b


def refine(a, b, approximate):
    return refinement.refine(approximate(b.float()).double(), lambda x: b - x @ a, approximate)


@pytest.mark.parametrize("off", [0.0, 1e-3, 0.1, 0.3])
@pytest.mark.parametrize("condition", [10.0, 1e4])
def test_the_solution_is_that_of_float64(condition, off):
    a, b = system(condition=condition)
    x, steps = refine(a, b, rough(a, off))
    expected = torch.linalg.solve(a, b.mT).mT
    errors = (x - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
    assert x.dtype == torch.float64 and errors.max() < refinement.TOLERANCE
    assert steps <= (2 if off < 0.1 else refinement.STEPS)


@pytest.mark.parametrize("off", [2.0, float("nan"), float("inf")])
def test_an_inverse_that_is_none_is_told(off):
    a, b = system()
    assert refine(a, b, rough(a, off)) is None


def test_a_target_of_small_norm_is_solved_as_well_as_a_large_one():
    """With one norm for all, the small one's error would be nothing beside the large one."""
    a, b = system(targets=2)
    b[0] *= 1e-12
    x, _ = refine(a, b, rough(a, 0.2))
    expected = torch.linalg.solve(a, b.mT).mT
    assert (x[0] - expected[0]).norm() < refinement.TOLERANCE * expected[0].norm()


def test_targets_without_gradient_and_no_targets_are_solved():
    a, b = system()
    b[1] = 0
    x, _ = refine(a, b, rough(a, 0.1))
    assert not x[1].any() and x[0].any()
    x, steps = refine(a, b[:0], rough(a, 0.1))
    assert x.shape == (0, 2, 30) and steps == 1
