"""Direct solutions in float32 are those of float64, however one direction dominates; nothing loses a finished pass."""

import pytest
import torch
from naive_scorers import draw

from vlmsel import score_gradients
from vlmsel.gradients import Factor
from vlmsel.scorers import BlockTargets, Exact, GradientScorer, HyperINF, LiSSA, Solved
from vlmsel.solvers import spectral


def dominated(d, by, rows=3, seed=0, count=60):
    """Gradients with a direction that is `by` times as long as the others', and targets that have their share of it."""
    gradients, targets = draw(count, rows, d, seed=seed), draw(2, rows, d, seed=seed + 1)
    direction = draw(d, seed=seed + 2)
    direction /= direction.norm()
    for own in (gradients, targets):
        own += by * (own @ direction)[..., None] * direction
    return gradients.float(), targets.float()


def gathered(scorer, gradients, targets):
    statistic = scorer.statistic(BlockTargets(targets))
    statistic.update(Factor.from_dense(gradients))
    return statistic


def by_hand(scorer, gradients, targets):
    """n v (S + nλI)⁻¹ in float64 from the sum S that the scorer gathers."""
    s = gathered(scorer, gradients, targets).gram.double()
    shift = scorer.damping * float(s.diagonal().sum()) / gradients[0].numel()
    matrix = s + shift * torch.eye(len(s), dtype=torch.float64)
    return torch.linalg.solve(matrix, len(gradients) * targets.double().mT).mT


def solve(scorer, gradients, targets):
    return scorer.solve(gathered(scorer, gradients, targets), targets)


def off(found, expected):
    return float((found.double() - expected).norm() / expected.norm())


def ranks(x):
    return x.argsort().argsort().double()


@pytest.mark.parametrize(("by", "damping"), [(1.0, 1e-1), (3.0, 1e-3), (1e4, 1e-4), (1e7, 1e-3), (1e7, 1e-4)])
@pytest.mark.parametrize("solver", ["cholesky", "schulz"])
def test_hyperinf_in_float32_is_that_of_float64(by, damping, solver):
    gradients, targets = dominated(60, by)
    scorer = HyperINF(damping, solver=solver)
    h, details = solve(scorer, gradients, targets)
    assert off(h, by_hand(scorer, gradients, targets)) < 1e-6
    assert details["solver"] == solver and details["converged"] and details["refinements"] >= 1


@pytest.mark.parametrize("solver", ["cholesky", "schulz"])
def test_ranks_are_those_of_float64_with_one_dominating_direction(solver):
    gradients, targets = dominated(1100, 1e3, rows=1, count=40)
    scorer = HyperINF(1e-4, solver=solver)
    h = solve(scorer, gradients, targets).h
    assert off(h, by_hand(scorer, gradients, targets)) < 1e-5
    both = [(own[0].double() * gradients.double()).sum((1, 2)) for own in (h, by_hand(scorer, gradients, targets))]
    assert torch.corrcoef(torch.stack([ranks(own) for own in both]))[0, 1] > 0.999


def test_the_published_steps_are_not_refined():
    gradients, targets = dominated(50, 0.0)
    details = solve(HyperINF.official_vlm(), gradients, targets).details
    assert details["solver"] == "schulz" and "refinements" not in details


@pytest.mark.parametrize("scorer", [HyperINF(1e-13, solver="cholesky"), HyperINF(1e-13), Exact(1e-16)])
def test_what_no_direct_solution_takes_is_solved_by_eigenvectors(scorer):
    """Many equal rows and next to no damping: not positive definite even in float64."""
    gradients = (draw(1, 1, 70) + torch.zeros(80, 1, 70)).float() * 1e3
    h, details = solve(scorer, gradients, draw(2, 1, 70, seed=5).float())
    assert details["solver"].startswith("eigenvectors") and "raise" in details["instead"] and torch.isfinite(h).all()


def test_eigenvectors_solve_as_cholesky_does():
    root, b = draw(6, 6), draw(6, 2, seed=1)
    a = root @ root.T + 0.1 * torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close(spectral.solve(a, b, 0.1), torch.linalg.solve(a, b))


@pytest.mark.parametrize("entry", [3e19, float("nan")])
@pytest.mark.parametrize("scorer", [HyperINF(solver="cholesky"), HyperINF(), HyperINF.official()])
def test_a_matrix_that_is_not_finite_is_one_clear_line(scorer, entry):
    targets = torch.ones(1, 1, 3)
    statistic = gathered(scorer, torch.full((2, 1, 3), entry), targets)
    message = (
        rf"{scorer.name} on a block \[1, 3\]: the matrix \[3, 3\] is not finite; use HyperINF with dtype='float64'"
    )
    with pytest.raises(ValueError, match=message):
        scorer.solve(statistic, targets)


class Boundless(GradientScorer):
    name = "Boundless"

    def solve(self, statistic, v):
        return Solved(v * torch.inf)


def test_a_solution_that_is_not_finite_is_refused_by_name():
    one = {"w": torch.ones(1, 1, 3)}
    with pytest.raises(ValueError, match="Boundless: P v of target 0 is not finite"):
        score_gradients(one, one, Boundless())


def test_what_is_solved_another_way_is_said(capsys):
    gradients, targets = {"w": draw(7, 3, 6, scale=1e5).float()}, {"w": draw(2, 3, 6, seed=2).float()}
    assert torch.isfinite(score_gradients(gradients, targets, LiSSA.official())).all()
    said = capsys.readouterr().out
    assert said.startswith("LiSSA.official: 1 of 1 blocks were solved in a safer way, the first w with scale left out")
