"""What statistics hold and where, what memory that runs out leaves of them, what solving takes and uses up, and small
matrices that are solved together."""

import weakref

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from vlmsel.gradients import Factor, LookupFactor, OuterFactor, SumFactor, factors
from vlmsel.scorers import KFAC, BlockTargets, DataInf, Exact, HyperINF, LiSSA, TracIn, TwoSided, gram_solve
from vlmsel.scoring.memory import zeros_at
from vlmsel.solvers import refinement, schulz

SCORERS = [
    TracIn(block_scale=True),
    DataInf(),
    LiSSA(),
    LiSSA(batch="stream"),
    LiSSA.official(damping=1e-3),
    HyperINF(),
    HyperINF(side="short"),
    HyperINF(solver="cholesky"),
    HyperINF(dtype="float64"),
    HyperINF(dtype="float32"),
    HyperINF(curvature="fim"),
    HyperINF.official(),
    Exact(),
]
DIFFERENT = [*SCORERS[:2], Exact(), *(SCORERS[i] for i in (3, 5, 6, 8, 10))]  # those that gather something of their own
SHAPES = [(6, 9), (9, 6), (1, 5)]


def draw(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(dtype) / 4


def start(scorer, shape, dtype=torch.float32, zeros=None, targets=3):
    """A statistic before the pass, placed if `zeros` is given."""
    statistic = scorer.statistic(BlockTargets(draw(targets, *shape, dtype=dtype), 0.1))
    if zeros is not None:
        statistic.zeros = zeros
    return statistic


def gathered(scorer, shape, dtype=torch.float32, zeros=None, n=8, targets=3):
    """A statistic after two batches."""
    statistic, gradients = start(scorer, shape, dtype, zeros, targets), draw(n, *shape, dtype=dtype)
    for batch in (gradients[:3], gradients[3:]):
        statistic.update(Factor.from_dense(batch))
    return statistic


def solve(scorer, statistic):
    return scorer.solve(statistic, statistic.block.targets)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scorer", SCORERS, ids=repr)
def test_bytes_are_those_of_the_tensors_and_known_before(scorer, shape, dtype):
    planned = scorer.statistic(BlockTargets(torch.empty(3, *shape, dtype=dtype, device="meta"), 0.1))
    held = sum(tensor.nbytes for tensor in gathered(scorer, shape, dtype).tensors().values())
    assert planned.bytes(8) == held > 0


class Noting:
    """Makes zeros somewhere, and notes what for."""

    def __init__(self, zeros):
        self.zeros, self.made = zeros, []

    def __call__(self, shape, dtype):
        self.made.append(self.zeros(shape, dtype))
        return self.made[-1]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scorer", SCORERS, ids=repr)
def test_the_place_changes_no_bit_of_the_solution(scorer, shape, tmp_path):
    expected = solve(scorer, gathered(scorer, shape))
    for place in ("device", "host", "disk"):
        zeros = Noting(zeros_at(place, "cpu", tmp_path))
        placed, resumed = gathered(scorer, shape, zeros=zeros), start(scorer, shape, zeros=zeros)
        resumed.load({key: tensor.clone() for key, tensor in placed.state().items()})
        assert bool(zeros.made) == placed.movable
        for found in (solve(scorer, placed), solve(scorer, resumed)):
            assert torch.equal(found.h, expected.h) and found.details == expected.details


def test_nothing_is_made_before_the_first_update():
    zeros = Noting(zeros_at("host", "cpu"))
    statistic = start(HyperINF(), (4, 4), zeros=zeros)
    assert zeros.made == []
    statistic.update(Factor.from_dense(torch.ones(1, 4, 4)))
    assert len(zeros.made) == 1 and zeros.made[0].data_ptr() == statistic.tensors()["gram"].data_ptr()


@pytest.mark.parametrize("scorer", [HyperINF(), HyperINF(solver="cholesky"), Exact(), LiSSA()], ids=repr)
def test_solving_drops_what_is_spendable_and_nothing_else(scorer):
    zeros = Noting(zeros_at("device", "cpu"))
    statistic = gathered(scorer, (6, 9), zeros=zeros)
    before = {key: tensor.clone() for key, tensor in statistic.state().items()}
    first = solve(scorer, statistic)
    assert all(torch.equal(tensor, before[key]) for key, tensor in statistic.state().items())
    made = [weakref.ref(tensor) for tensor in zeros.made]
    zeros.made.clear()
    statistic.spendable = True
    torch.testing.assert_close(solve(scorer, statistic).h, first.h)
    assert made and not any(each() is not None for each in made)
    with pytest.raises(RuntimeError, match="used up"):
        solve(scorer, statistic)
    with pytest.raises(RuntimeError, match="used up"):
        statistic.state()


# Memory that runs out


class FullAt(TorchDispatchMode):
    """Runs out of memory when a tensor is made for the time of this number, counted from 0."""

    def __init__(self, number):
        super().__init__()
        self.left = number

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        given = (each for each in (*args, *(kwargs or {}).values()) if isinstance(each, torch.Tensor))
        if isinstance(made, torch.Tensor) and all(made.data_ptr() != each.data_ptr() for each in given):
            self.left -= 1
            if self.left < 0:
                raise torch.OutOfMemoryError("out of memory")
        return made


def factor_of(kind, n=3):
    """Gradients [6, 9] of one of the kinds that a model's layers give."""
    outer, delta = OuterFactor(draw(n, 4, 6), draw(n, 4, 9)), draw(n, 4, 9)
    if kind == "formed":
        return Factor.from_dense(draw(n, 6, 9))
    return outer if kind == "tokens" else SumFactor([outer, LookupFactor(torch.arange(12).reshape(n, 4) % 6, delta, 6)])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("limit", [factors.LIMIT, 60], ids=["whole", "in pieces"])
@pytest.mark.parametrize("kind", ["formed", "tokens", "sum"])
@pytest.mark.parametrize("scorer", DIFFERENT, ids=repr)
def test_an_update_that_runs_out_of_memory_anywhere_has_taken_in_nothing(scorer, kind, limit, monkeypatch):
    monkeypatch.setattr(factors, "LIMIT", limit)
    batch, statistic, expected = factor_of(kind), start(scorer, (6, 9)), start(scorer, (6, 9))
    assert len(list(batch.pieces())) == (3 if limit == 60 else 1)
    for each in (statistic, expected, expected):
        each.update(batch)
    before, failed = {key: tensor.clone() for key, tensor in statistic.state().items()}, 0
    while True:
        try:
            with FullAt(failed):
                statistic.update(batch)
            break
        except torch.OutOfMemoryError:
            failed, after = failed + 1, statistic.state()
            assert after.keys() == before.keys()
            assert all(torch.equal(after[key], before[key]) for key in before), f"allocation {failed}"
    assert failed or kind == "formed"  # which may be added as they are
    assert all(torch.equal(tensor, expected.state()[key]) for key, tensor in statistic.state().items())


# What solving takes


def peak_bytes(call):
    """Return the most bytes that torch took during a call beyond what it held, temporaries of operations included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        kept = call()
    held = peak = 0
    for event in sorted(seen.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak, kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [4, 30])
@pytest.mark.parametrize("scorer", SCORERS, ids=repr)
def test_solving_takes_no_more_than_is_counted(scorer, n, dtype):
    statistic = gathered(scorer, (12, 20), dtype, n=n)
    statistic.state()  # joins what is kept
    for statistic.spendable in (False, True):
        peak, _ = peak_bytes(lambda: solve(scorer, statistic))
        assert peak <= scorer.solve_bytes(statistic.block, n) + 128  # a few numbers


@pytest.mark.parametrize("scorer", [HyperINF(), HyperINF(solver="cholesky"), HyperINF(side="short")], ids=repr)
def test_many_targets_and_steps_of_refinement_are_counted(scorer):
    statistic = start(scorer, (8, 200), targets=64)
    statistic.update(Factor.from_dense(narrow(300, 200).repeat(1, 4, 1)))
    statistic.state()
    peak, solved = peak_bytes(lambda: solve(scorer, statistic))
    assert solved.details["refinements"] >= (1 if scorer.side == "short" else 2)
    assert peak <= scorer.solve_bytes(statistic.block, 300) + 128


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scorer", [HyperINF(), HyperINF(solver="cholesky"), KFAC(), TwoSided()], ids=repr)
def test_making_the_norm_takes_no_more_than_is_counted(scorer, dtype):
    statistic = start(scorer, (1, 400), dtype, targets=1)
    statistic.update(Factor.from_dense(draw(30, 1, 400, dtype=dtype)))
    statistic.state()
    peak, _ = peak_bytes(lambda: scorer.metric(statistic))
    assert peak <= scorer.solve_bytes(statistic.block, 30) + scorer.metric_bytes(statistic.block)
    peak, _ = peak_bytes(lambda: solve(scorer, statistic))
    assert peak <= scorer.solve_bytes(statistic.block, 30) + 128


@pytest.mark.parametrize(
    "scorer, kept, spent",
    [
        (HyperINF(), 2 + schulz.PANEL / 576, 2 + schulz.PANEL / 576),
        (HyperINF.official(), 2 + schulz.PANEL / 576, 2 + schulz.PANEL / 576),
        (HyperINF(solver="cholesky"), 1 + 2 * gram_solve.ROWS / 576, 1 + 2 * gram_solve.ROWS / 576),
        (HyperINF(dtype="float64", solver="cholesky"), 2, 2),
    ],
    ids=repr,
)
def test_matrices_alive_beside_that_of_the_block(scorer, kept, spent):
    """In float32: X, the error and some rows; Cholesky a copy, for the matrix must stay to check it."""
    d = 576
    statistic = gathered(scorer, (4, d), targets=1)
    for statistic.spendable, matrices in ((False, kept), (True, spent)):
        found = peak_bytes(lambda: solve(scorer, statistic))[0] / (4 * d * d)
        assert matrices <= found < matrices + 0.1
        assert scorer.solve_bytes(statistic.block, 8) >= found * 4 * d * d


def narrow(n, d):
    """Gradients [n, 2, d] whose GFIM has eigenvalues down to 1e-12 of the greatest, along no axis; float32."""
    q = torch.linalg.qr(draw(d, d, dtype=torch.float64)).Q
    return ((draw(n, 2, d, dtype=torch.float64) * torch.logspace(0, -6, d, dtype=torch.float64)) @ q.T).float()


def test_where_schulz_does_not_converge_no_fourth_matrix_is_made():
    scorer, d = HyperINF(damping=3e-6), 600
    statistic = start(scorer, (2, d), targets=1)
    statistic.update(Factor.from_dense(narrow(700, d)))
    peak, solved = peak_bytes(lambda: solve(scorer, statistic))
    assert not solved.details["converged"]
    assert peak <= scorer.solve_bytes(statistic.block, 700) and peak / (4 * d * d) < 3


@pytest.mark.parametrize("solver, steps", [("schulz", refinement.STEPS), ("cholesky", 1)])  # the second needs five
def test_what_float32_does_not_solve_is_solved_in_float64(solver, steps, monkeypatch):
    monkeypatch.setattr(refinement, "STEPS", steps)
    scorer = HyperINF(damping=3e-6, solver=solver)
    statistic = start(scorer, (2, 20), targets=1)
    statistic.update(Factor.from_dense(narrow(60, 20)))
    details = solve(scorer, statistic).details
    assert "refinements" not in details and details["solver"].startswith("cholesky in float64")


def test_what_is_not_positive_definite_is_solved_by_eigenvectors_and_said():
    scorer = HyperINF(1e-13, solver="cholesky", name="mine")
    statistic = start(scorer, (2, 60))
    statistic.update(Factor.from_dense(draw(1, 2, 60) * 1e3))
    assert solve(scorer, statistic).details["instead"].startswith("by eigenvectors, ")
    assert "instead" not in solve(scorer, gathered(scorer, (2, 60), n=80)).details
