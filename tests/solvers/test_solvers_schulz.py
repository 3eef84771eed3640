"""Schulz's iteration: residuals square, it converges in about log2(condition) steps, and tells where it does not."""

import math

import pytest
import torch
from naive_scorers import draw, schulz_published

from vlmsel.solvers import schulz


def matrix(eigenvalues, seed=0):
    """A symmetric matrix with these eigenvalues and no axis of its own."""
    q = torch.linalg.qr(draw(len(eigenvalues), len(eigenvalues), seed=seed)).Q
    a = q @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ q.T
    return (a + a.T) / 2


@pytest.mark.parametrize("low", [1.0, 1e-2, 1e-5])
def test_inverse_equals_a_direct_one(low):
    a = matrix([low, 3 * low, 0.5, 1.0, 1.0, 1.0])
    found = schulz.inverse(a, low)
    assert found.converged
    torch.testing.assert_close(found.matrix, torch.linalg.inv(a), rtol=1e-8, atol=1e-9 / low)


def test_recorded_residuals_are_those_of_the_iterates_and_square_themselves():
    a, low = matrix([0.1, 0.4, 1.0]), 0.1
    found = schulz.inverse(a, low)
    eye = torch.eye(3, dtype=torch.float64)
    x = 2 / (low + schulz.spectrum_bound(a)) * eye
    expected = [float((eye - a @ x).norm())]
    for _ in found.residuals[1:]:
        x = x @ (2 * eye - a @ x)
        expected.append(float((eye - a @ x).norm()))
    assert found.residuals == pytest.approx(expected, rel=1e-6, abs=1e-14)
    assert all(after <= before**2 + 1e-14 for before, after in zip(found.residuals, found.residuals[1:], strict=False))
    assert found.residuals[-1] <= schulz.TOLERANCE[torch.float64] < found.residuals[-2]


@pytest.mark.parametrize("condition", [10.0, 1e3, 1e6])
def test_steps_grow_with_the_logarithm_of_the_condition(condition):
    a = matrix([1 / condition, 1e-2, 1.0])
    steps = len(schulz.inverse(a, min(1 / condition, 1e-2)).residuals) - 1
    assert steps <= math.log2(schulz.spectrum_bound(a) * max(condition, 100)) + 6


def test_the_bound_is_the_smaller_of_row_sum_and_trace_and_above_the_spectrum():
    ones = torch.ones(3, 3, dtype=torch.float64)
    assert schulz.spectrum_bound(ones + torch.diag(torch.tensor([0.0, 0.0, 5.0]))) == 8.0  # both are 8
    assert schulz.spectrum_bound(ones) == 3.0
    assert schulz.spectrum_bound(torch.eye(3)) == 1.0  # the row sum; the trace is 3
    spike = torch.tensor([[1.0, 0.9], [0.9, 0.81]])
    assert schulz.spectrum_bound(spike) == pytest.approx(1.81)  # the trace; the row sum is 1.9
    for seed in range(5):
        a = matrix([0.0, 0.3, 2.0, 2.5], seed)
        assert schulz.spectrum_bound(a) >= 2.5


def test_rounding_stops_it_early_and_it_says_so():
    a = matrix([1e-9, 0.2, 0.7, 1.0]).float()
    found = schulz.inverse(a, low=1e-9)
    assert not found.converged
    assert len(found.residuals) <= math.log2(2e9) + schulz.SPARE_STEPS + 2


def test_a_stall_ends_it_before_its_steps_are_used_up():
    a = matrix([1e-5, 0.3, 1.0]).float()
    found = schulz.inverse(a, low=1e-5, tolerance=1e-12, max_steps=500)
    assert not found.converged and len(found.residuals) < 60


def test_too_few_steps_are_not_convergence():
    a = matrix([0.01, 1.0])
    assert not schulz.inverse(a, 0.01, max_steps=2).converged
    assert len(schulz.inverse(a, 0.01, max_steps=2).residuals) == 3


def test_what_is_not_positive_definite_or_not_a_number_does_not_converge():
    assert not schulz.inverse(matrix([-0.5, 1.0, 2.0]), low=0.1).converged
    assert not schulz.inverse(torch.full((2, 2), math.nan), low=0.1).converged


@pytest.mark.parametrize("low", [0.0, -1.0, math.nan])
def test_a_bound_that_is_not_positive_is_refused(low):
    with pytest.raises(ValueError, match="positive lower bound"):
        schulz.inverse(torch.eye(2), low)


@pytest.mark.parametrize("steps", [1, 15, 30])
def test_fixed_steps_are_the_published_loop(steps):
    a = matrix([1e-4, 0.3, 2.0])
    found = schulz.fixed_steps(a, 5e-5, steps)
    torch.testing.assert_close(found.matrix, schulz_published(a, steps))
    assert len(found.residuals) == steps + 1
    eye = torch.eye(3, dtype=torch.float64)
    assert found.residuals[-1] == pytest.approx(float((eye - a @ found.matrix).norm()))


def test_fifteen_published_steps_leave_small_eigenvalues_multiplied_by_1_64():
    a = matrix([1e-6, 2e-6, 1e-5])
    found = schulz.fixed_steps(a, 5e-5, 15)
    assert not found.converged
    torch.testing.assert_close(found.matrix, 1.6384 * torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-4)
