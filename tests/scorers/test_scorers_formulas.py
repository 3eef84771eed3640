"""Every scorer against its formula written as a loop, in float64, on tall, wide, square and one-row blocks."""

import math

import naive_scorers as naive
import pytest
import torch

from vlmsel import score_gradients
from vlmsel.gradients import Factor
from vlmsel.gradients.factors import OuterFactor
from vlmsel.scorers import Adafactor, BlockTargets, DataInf, Exact, HyperINF, LiSSA, TracIn
from vlmsel.scorers.base import Metric

SHAPES = [(5, 3), (3, 6), (4, 4), (1, 5), (5, 1)]  # rows, cols
DEEP = LiSSA(depth=600, damping=1.0)
CLOSE = {"rtol": 1e-6, "atol": 1e-8}  # Schulz stops at a residual of 1e-9


def problem(rows, cols, n=7):
    return naive.draw(n, rows, cols, seed=1), naive.draw(2, rows, cols, seed=2)


def solve(scorer, batches, targets, mean_square=None):
    """h = P v for each target, from these batches of gradients or factors, and what was recorded of it."""
    statistic = scorer.statistic(BlockTargets(targets, mean_square))
    for batch in batches if statistic is not None else ():
        statistic.update(Factor.from_dense(batch) if isinstance(batch, torch.Tensor) else batch)
    return scorer.solve(statistic, targets)


def solve_two(scorer, gradients, targets):
    """Solve from two batches."""
    return solve(scorer, (gradients[:3], gradients[3:]), targets, naive.mean_square(gradients))


def check(scorer, twin, shape, **tolerance):
    gradients, targets = problem(*shape)
    expected = torch.stack([twin(gradients, v) for v in targets])
    torch.testing.assert_close(solve_two(scorer, gradients, targets).h, expected, **tolerance)
    scores = score_gradients({"w": gradients}, {"w": targets}, scorer)
    torch.testing.assert_close(
        scores, torch.tensor([naive.scores(gradients, h) for h in expected], dtype=torch.float64), **tolerance
    )


def long_side(rows, cols):
    return "cols" if cols >= rows else "rows"


def short_side(rows, cols):
    return "rows" if cols >= rows else "cols"


@pytest.mark.parametrize("shape", SHAPES)
def test_tracin(shape):
    check(TracIn(), naive.tracin, shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_tracin_with_block_scale(shape):
    check(TracIn(block_scale=True), naive.tracin_block_scale, shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_adafactor(shape):
    check(Adafactor(), naive.adafactor, shape)


def test_adafactor_floors_rows_and_columns_without_gradient():
    gradients, targets = problem(4, 3)
    gradients[:, 1] = gradients[:, :, 2] = 0
    for v, h in zip(targets, solve_two(Adafactor(floor=0.01), gradients, targets).h, strict=True):
        torch.testing.assert_close(h, naive.adafactor(gradients, v, 0.01))
    assert not solve_two(Adafactor(), torch.zeros_like(gradients), targets).h.any()


@pytest.mark.parametrize("scorer", [TracIn(), TracIn(block_scale=True), Adafactor(), HyperINF(0.5)], ids=repr)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_metric_is_the_square_of_what_is_preconditioned(scorer, shape):
    gradients, _ = problem(*shape)
    statistic = scorer.statistic(BlockTargets(gradients, naive.mean_square(gradients)))
    if statistic is not None:
        statistic.update(Factor.from_dense(gradients))
    expected = [naive.dot(h, g) for h, g in zip(scorer.solve(statistic, gradients).h, gradients, strict=True)]
    left, right = torch.linalg.qr(gradients.mT)  # g = rightᵀ leftᵀ, as a sum of outer products
    for factor in (Factor.from_dense(gradients), OuterFactor(right.contiguous(), left.mT.contiguous())):
        squares = scorer.metric(statistic).squares(factor)
        torch.testing.assert_close(squares, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("size", [1, 63, 64, 130, 700])
@pytest.mark.parametrize("side", ["rows", "cols"])
def test_a_triangular_metric_leaves_out_zeros_alone(side, size):
    shape = {"rows": (size, 3), "cols": (3, size)}[side]
    gradients, lower = naive.draw(4, *shape, seed=1), naive.draw(size, size, seed=2).tril()
    turned = [lower @ g if side == "rows" else g @ lower.T for g in gradients]
    expected = 0.5 * torch.stack([(one * one).sum() for one in turned])
    unit = torch.eye(3, dtype=torch.float64).expand(4, 3, 3)
    outer = OuterFactor(gradients.mT, unit) if side == "rows" else OuterFactor(unit, gradients)
    forms = [Factor.from_dense(gradients), Factor.from_dense(gradients[:0]), outer]
    for form in forms:
        found = Metric(**{side: lower}, scale=0.5, lower=True).squares(form)
        torch.testing.assert_close(found, expected[: form.samples], rtol=1e-12, atol=0)


@pytest.mark.parametrize("more", [{"cols": torch.eye(3)}, {"weights": torch.ones(3, 3)}])
def test_a_triangular_metric_of_more_than_one_side_is_refused(more):
    with pytest.raises(ValueError, match="a lower Metric has one side"):
        Metric(**{"rows": torch.eye(3), "scale": 2.0, "lower": True, **more}).squares(
            Factor.from_dense(torch.ones(1, 3, 3))
        )


@pytest.mark.parametrize("damping", [0.1, 10.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_datainf(shape, damping):
    check(DataInf(damping), lambda g, v: naive.datainf(g, v, damping), shape)


@pytest.mark.parametrize("depth", [1, 2, 10])
@pytest.mark.parametrize("shape", SHAPES)
def test_lissa_at_a_depth(shape, depth):
    check(LiSSA(depth, damping=0.2), lambda g, v: naive.lissa(g, v, 0.2, depth), shape)


def test_lissa_with_a_scale_of_its_own():
    check(LiSSA(5, scale=0.01), lambda g, v: naive.lissa(g, v, 0.1, 5, scale=0.01), (3, 6))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "scorer",
    [
        Exact(damping=1.0),
        HyperINF(damping=1.0, curvature="fim"),
        HyperINF(damping=1.0, curvature="fim", solver="cholesky"),
        DEEP,
    ],
    ids=["exact", "schulz", "cholesky", "deep LiSSA"],
)
def test_scorers_of_the_fim_agree_with_a_direct_solution(scorer, shape):
    check(scorer, lambda g, v: naive.direct(g, v, 1.0), shape, **CLOSE)


@pytest.mark.parametrize("n", [4, 40])
def test_exact_is_the_same_in_sample_and_in_parameter_space(n):
    gradients, targets = naive.draw(n, 3, 4, seed=3), naive.draw(2, 3, 4, seed=4)
    expected = torch.stack([naive.direct(gradients, v, 0.1) for v in targets])
    torch.testing.assert_close(solve_two(Exact(), gradients, targets).h, expected)


@pytest.mark.parametrize("solver", ["schulz", "cholesky"])
@pytest.mark.parametrize("side, which", [("long", long_side), ("short", short_side)])
@pytest.mark.parametrize("shape", SHAPES)
def test_hyperinf_of_the_gfim(shape, side, which, solver):
    scorer = HyperINF(damping=0.3, side=side, solver=solver)
    check(scorer, lambda g, v: naive.hyperinf(g, v, 0.3, which(*shape)), shape, **CLOSE)


def test_hyperinf_on_factors_of_tokens_is_that_on_formed_gradients():
    factor = OuterFactor(naive.draw(6, 3, 8), naive.draw(6, 3, 5, seed=1))
    targets = naive.draw(2, 8, 5, seed=2)
    for side in ("long", "short"):
        found = solve(HyperINF(side=side), [factor], targets).h
        which = "rows" if side == "long" else "cols"
        expected = torch.stack([naive.hyperinf(factor.dense(), v, 0.1, which) for v in targets])
        torch.testing.assert_close(found, expected, **CLOSE)


def test_extra_damping_is_added_to_that_relative_to_the_gradients():
    check(HyperINF(extra_damping=0.7), lambda g, v: naive.hyperinf(g, v, 0.1, "cols", extra=0.7), (3, 6), **CLOSE)


def test_blocks_are_damped_by_themselves_and_summed():
    first, second = problem(5, 3), problem(2, 4)
    scorer = HyperINF(damping=0.5)
    together = score_gradients({"a": first[0], "b": second[0]}, {"a": first[1], "b": second[1]}, scorer)
    apart = [score_gradients({"w": g}, {"w": v}, scorer) for g, v in (first, second)]
    torch.testing.assert_close(together, apart[0] + apart[1])


@pytest.mark.parametrize("scorer", [HyperINF(damping=1e7), HyperINF(damping=1e7, curvature="fim"), DataInf(1e7)])
def test_great_damping_is_block_scaled_tracin(scorer):
    """The limit in which curvature drops out: P v = v / λ."""
    gradients, targets = problem(3, 6)
    scaled = solve_two(TracIn(block_scale=True), gradients, targets).h
    torch.testing.assert_close(1e7 * solve_two(scorer, gradients, targets).h, scaled, rtol=1e-5, atol=1e-5)


def test_datainf_is_exact_for_one_sample():
    """The order of mean and inverse does not matter for one sample."""
    gradients, targets = naive.draw(1, 3, 4), naive.draw(1, 3, 4, seed=1)
    found = -score_gradients({"w": gradients}, {"w": targets}, DataInf())
    torch.testing.assert_close(found, -score_gradients({"w": gradients}, {"w": targets}, Exact()))


def test_the_helpful_sample_has_the_lowest_score():
    """A sample whose gradient is the target's own lowers its loss; the opposite one raises it."""
    target = naive.draw(1, 3, 4)
    gradients = torch.cat([target, -target, 0.1 * naive.draw(5, 3, 4, seed=1)])
    for scorer in (TracIn(), TracIn(block_scale=True), DataInf(), LiSSA(), HyperINF(), Exact(), LiSSA.official()):
        scores = score_gradients({"w": 0.3 * gradients}, {"w": target}, scorer)[0]
        assert scores.argmin() == 0 and scores.argmax() == 1, scorer.name


@pytest.mark.parametrize("depth", [3, 10])
def test_streaming_lissa_takes_a_step_per_batch_with_that_batch_s_curvature(depth):
    gradients, targets = problem(3, 4, n=8)
    mean_square = naive.mean_square(gradients)
    lam, trace = 0.5 * mean_square, 12 * mean_square
    r, batches = targets / (lam + trace), gradients.split((1, 2, 3, 2))
    for number, batch in enumerate(batches):
        own_trace = sum(naive.dot(g, g) for g in batch) / len(batch)
        s = 1 / (max(trace, own_trace) + lam)
        product = [sum(naive.dot(g, row) * g for g in batch) / len(batch) + lam * row for row in r]
        if number < depth:
            r = s * targets + r - s * torch.stack(product)
    found = solve(LiSSA(depth, damping=0.5, batch="stream"), batches, targets, mean_square)
    torch.testing.assert_close(found.h, r)
    assert found.details["steps"] == min(4, depth)


def test_streaming_lissa_tends_to_the_exact_solution_when_every_batch_is_the_pool():
    gradients, targets = problem(2, 3)
    scorer = LiSSA(400, damping=1.0, batch="stream")
    found = solve(scorer, [gradients] * 400, targets, naive.mean_square(gradients))
    expected = torch.stack([naive.direct(gradients, v, 1.0) for v in targets])
    torch.testing.assert_close(found.h, expected, **CLOSE)


@pytest.mark.parametrize("scorer", [DataInf(), LiSSA(batch="stream")])
def test_damping_must_be_measured_before_the_pass(scorer):
    with pytest.raises(ValueError, match=f"{scorer.name} needs the mean squared gradient entry"):
        scorer.statistic(BlockTargets(torch.zeros(1, 2, 2)))
    with pytest.raises(ValueError, match=r"a block \[2, 2\] has gradients, but .* measure the damping on more samples"):
        solve(scorer, [torch.ones(1, 2, 2)], torch.zeros(1, 2, 2), 0.0)


def rotated(rows, cols, low):
    """Gradients whose GFIM has eigenvalues between about `low` and 1 along no axis."""
    q = torch.linalg.qr(naive.draw(cols, cols, seed=5)).Q
    sizes = torch.logspace(0, math.log10(low) / 2, cols, dtype=torch.float64)
    return (naive.draw(60, rows, cols, seed=6) * sizes) @ q.T


def test_where_float32_cannot_converge_cholesky_in_float64_solves_the_system():
    gradients, targets = rotated(2, 12, 1e-12), naive.draw(1, 2, 12)
    solved, details = solve_two(HyperINF(damping=1e-8, dtype="float32"), gradients, targets)
    assert not details["converged"] and details["solver"].startswith("cholesky in float64")
    assert details["residuals"][-1] > 1e-3
    expected = naive.hyperinf(gradients, targets[0], 1e-8, "cols")
    assert (solved[0] - expected).norm() < 1e-5 * expected.norm()  # small entries beside large ones lose more digits


def test_float64_on_request_sums_and_solves_in_float64():
    """Small damping on float32 gradients: their products must not be rounded before they are summed."""
    gradients, targets = rotated(2, 12, 1e-12).float(), naive.draw(1, 2, 12).float()
    solved = solve_two(HyperINF(damping=1e-8, dtype="float64"), gradients, targets).h
    assert solved.dtype == torch.float32
    expected = naive.hyperinf(gradients.double(), targets[0].double(), 1e-8, "cols")
    assert (solved[0].double() - expected).norm() < 1e-5 * expected.norm()


def test_details_record_the_damping_and_the_residuals():
    gradients, targets = problem(3, 6)
    details = solve_two(HyperINF(damping=0.2), gradients, targets).details
    assert details["damping"] == pytest.approx(0.2 * naive.mean_square(gradients))
    assert details["samples"] == 7 and details["converged"] and details["side"] == "cols"
    assert details["residuals"][-1] <= 1e-9 < details["residuals"][0]


def test_the_fim_of_a_large_block_is_refused_with_its_size():
    with pytest.raises(
        ValueError, match=r"block \[64, 4096\] is a matrix of 262144² numbers .*256 GiB.* curvature='gfim'"
    ):
        HyperINF(curvature="fim").statistic(BlockTargets(torch.zeros(1, 1, 1).expand(1, 64, 4096)))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: HyperINF(damping=0), "damping must be a number above 0, got 0"),
        (lambda: HyperINF(damping=None), "damping must be a number above 0, got None"),
        (lambda: DataInf(damping=None), "damping must be a number above 0, got None"),
        (lambda: Exact(damping=math.nan), "damping must be a number above 0, got nan"),
        (lambda: DataInf(damping=True), "damping must be a number above 0, got True"),
        (lambda: LiSSA(depth=0), "depth must be a whole number above 0, got 0"),
        (lambda: LiSSA(depth=None), "depth must be a whole number above 0, got None"),
        (lambda: LiSSA(scale=-1), "scale must be a number above 0, got -1"),
        (lambda: LiSSA(batch="half"), "batch must be one of 'full', 'stream'; got 'half'"),
        (lambda: LiSSA(published=True, batch="stream"), "leave scale and batch out"),
        (lambda: LiSSA(published="no"), "published must be True or False, got 'no'"),
        (lambda: TracIn(block_scale="no"), "block_scale must be True or False, got 'no'"),
        (lambda: TracIn(cosine="no"), "cosine must be True or False, got 'no'"),
        (lambda: TracIn(block_scale=True, cosine=True), "norms over all blocks, block_scale by .*; leave one out"),
        (lambda: HyperINF(curvature="hessian"), "curvature must be one of"),
        (lambda: HyperINF(side="left"), "side must be one of"),
        (lambda: HyperINF(solver="lu"), "solver must be one of"),
        (lambda: HyperINF(dtype="half"), "dtype must be one of"),
        (lambda: HyperINF(extra_damping=-1), "extra_damping must be a number above 0, got -1"),
        (lambda: HyperINF(extra_damping=None), "extra_damping must be a number above 0, got None"),
        (lambda: HyperINF(start=1e-4), "start and steps go together"),
        (lambda: HyperINF(start=1e-4, steps=3, solver="cholesky"), "start and steps go together"),
    ],
)
def test_hyper_parameters_out_of_range_are_refused_when_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()
