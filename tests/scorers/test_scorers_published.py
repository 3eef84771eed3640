"""The published presets repeat the published iterations, sign and start included; where they explode, that is said."""

import math
import re

import naive_scorers as naive
import pytest
import torch

from vlmsel import score_gradients
from vlmsel.gradients import Factor
from vlmsel.scorers import BlockTargets, HyperINF, LiSSA


def problem(scale=0.2):
    return naive.draw(7, 3, 6, seed=1, scale=scale), naive.draw(2, 3, 6, seed=2)


def solve(scorer, gradients, targets):
    """h = P v and what was recorded about it"""
    statistic = scorer.statistic(BlockTargets(targets))
    statistic.update(Factor.from_dense(gradients))
    return scorer.solve(statistic, targets)


@pytest.mark.parametrize("damping", [0.1, 1.0])
def test_official_lissa_is_ten_steps_of_the_published_line(damping):
    gradients, targets = problem()
    scorer = LiSSA.official(damping)
    expected = torch.stack([naive.lissa_published(gradients, v, damping) for v in targets])
    torch.testing.assert_close(solve(scorer, gradients, targets)[0], expected)
    scores = score_gradients({"w": gradients}, {"w": targets}, scorer)
    torch.testing.assert_close(scores[0].tolist(), naive.scores(gradients, expected[0]))


def test_the_published_sign_tends_to_the_inverse_of_g_minus_lambda():
    """With λ below the spectrum of G, which is what shows that the sign differs from LiSSA's own."""
    basis = torch.eye(6, dtype=torch.float64).reshape(6, 2, 3)
    gradients, v = basis * torch.tensor([1.0, 1.1, 1.2, 1.3, 1.4, 1.5])[:, None, None], naive.draw(1, 2, 3)
    lam = 0.5 * naive.mean_square(gradients)
    fim = naive.fim(gradients)
    official = solve(LiSSA(depth=2000, damping=0.5, published=True), gradients, v)[0]
    minus = torch.linalg.solve(fim - lam * torch.eye(6, dtype=torch.float64), v.flatten()).reshape(v.shape)
    torch.testing.assert_close(official, minus)
    own = solve(LiSSA(depth=2000, damping=0.5), gradients, v)[0]
    torch.testing.assert_close(own[0], naive.direct(gradients, v[0], 0.5))


@pytest.mark.parametrize(
    "scorer, steps, extra",
    [(HyperINF.official(), 30, 1e-3), (HyperINF.official_vlm(), 15, 0.0), (HyperINF.official(damping=5.0), 30, 1e-3)],
)
def test_official_hyperinf_is_the_published_number_of_schulz_steps(scorer, steps, extra):
    gradients, targets = problem()
    expected = [
        naive.hyperinf(gradients, v, scorer.damping, "cols", extra, lambda a: naive.schulz_published(a, steps))
        for v in targets
    ]
    h, details = solve(scorer, gradients, targets)
    torch.testing.assert_close(h, torch.stack(expected), rtol=1e-9, atol=1e-12)
    assert len(details["residuals"]) == steps + 1


def test_official_hyperinf_converges_on_eigenvalues_of_a_mislabel_study_and_the_vlm_one_does_not():
    gradients, targets = problem(scale=0.2)
    converged = naive.hyperinf(gradients, targets[0], 0.1, "cols", extra=1e-3)
    h, details = solve(HyperINF.official(), gradients, targets)
    assert details["converged"]
    torch.testing.assert_close(h[0], converged)
    assert not solve(HyperINF.official_vlm(), gradients, targets)[1]["converged"]


def test_published_steps_give_plain_norms_for_they_are_no_inverse():
    assert HyperINF().own_norm and not HyperINF.official().own_norm and not HyperINF.official_vlm().own_norm


def test_official_vlm_ranks_small_gradients_as_tracin_does():
    """15 steps from 5e-5·I multiply directions of small eigenvalues by 1.64 and invert nothing."""
    gradients, targets = problem(scale=1e-3)
    h = solve(HyperINF.official_vlm(), gradients, targets)[0]
    torch.testing.assert_close(h, 2**15 * 5e-5 * targets, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scorer", [HyperINF.official(), HyperINF.official_vlm()])
def test_a_published_schulz_iteration_that_explodes_is_solved_and_said(scorer):
    gradients, targets = problem(scale=1e4)
    h, details = solve(scorer, gradients.float(), targets.float())
    assert re.search(r"exploded: .* eigenvalues below 40000, .*\[3, 6\].* left out", details["instead"])
    expected = naive.hyperinf(gradients, targets[0], 0.1, "cols", extra=scorer.extra_damping)
    torch.testing.assert_close(h[0].double(), expected, rtol=1e-4, atol=0)


def test_a_published_series_that_explodes_is_solved_and_said():
    gradients, targets = problem(scale=1e5)
    h, details = solve(LiSSA.official(), gradients.float(), targets.float())
    assert "exploded within 10 steps: the published line has no scale" in details["instead"]
    torch.testing.assert_close(h, solve(LiSSA(), gradients.float(), targets.float())[0])


def test_a_scale_that_is_too_large_is_left_out_and_said():
    h, details = solve(LiSSA(depth=500, scale=100.0), *problem(scale=1.0))
    assert "exploded within 500 steps: scale 100 is too large" in details["instead"]
    torch.testing.assert_close(h, solve(LiSSA(depth=500), *problem(scale=1.0))[0])


def test_a_stream_says_at_the_batch_that_its_scale_is_too_large():
    gradients, targets = problem(scale=1e5)
    statistic = LiSSA(batch="stream", scale=100.0, depth=500).statistic(BlockTargets(targets, 1.0))
    with pytest.raises(
        ValueError, match=r"exploded at batch \d+: scale 100 is too large; use LiSSA with scale left out"
    ):
        for _ in range(100):
            statistic.update(Factor.from_dense(gradients))


def test_where_the_published_ones_explode_the_scorers_themselves_do_not():
    gradients, targets = problem(scale=1e5)
    for scorer in (HyperINF(), LiSSA()):
        assert math.isfinite(float(solve(scorer, gradients, targets)[0].norm()))


def test_presets_keep_their_columns_apart_and_take_a_name():
    names = [LiSSA.official().name, HyperINF.official().name, HyperINF.official_vlm().name, LiSSA().name]
    assert names == ["LiSSA.official", "HyperINF.official", "HyperINF.official_vlm", "LiSSA"]
    assert HyperINF.official(name="mine").name == "mine"
