"""Memory of the curvature pass: kept gradients refused before it, what accumulators hold and where, small matrices
solved together."""

import gc
import weakref
from dataclasses import dataclass

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from vlmsel.scorers.together import solve_together

from vlmsel.gradients import Factor
from vlmsel.scorers import Accumulator, DataInf, Exact, HyperINF, LiSSA, Random, Scorer, TracIn
from vlmsel.scorers import together as together_module
from vlmsel.scorers.statistics import check_kept
from vlmsel.scorers.testing import check_scorer
from vlmsel.scoring.memory import zeros_at
from vlmsel.solvers import schulz

BLOCKS = {"a": (64, 4096), "b": (4096, 64), "c": (64, 64)}  # 2.1 MB a sample


def test_what_fits_passes_up_to_the_limit():
    bytes_each = 4 * (2 * 64 * 4096 + 64 * 64)
    check_kept([Exact()], 1000, BLOCKS, limit=1000 * bytes_each)
    with pytest.raises(ValueError):
        check_kept([Exact()], 1001, BLOCKS, limit=1000 * bytes_each)


def test_the_message_says_how_much_for_what_and_how_many_samples_would_do():
    with pytest.raises(ValueError) as refused:
        check_kept([Exact()], 10000, BLOCKS, limit=4e9)
    message = str(refused.value)
    assert message.startswith(
        "Exact would keep every fit sample's gradient: 21.1 GB for 10000 fit samples on 3 blocks (limit 4 GB), the "
        "largest of them a [64, 4096]; use fit_samples=1892 or fewer, "
    )
    assert "LiSSA(batch='stream')" in message and "\n" not in message
    check_kept([Exact()], 1892, BLOCKS, limit=4e9)


def test_keepers_share_the_limit():
    check_kept([Exact()], 1892, BLOCKS, limit=4e9)
    with pytest.raises(ValueError, match="Exact, LiSSA would keep .* use fit_samples=946 or fewer"):
        check_kept([Exact(), LiSSA()], 1892, BLOCKS, limit=4e9)


def test_where_no_sample_fits_none_is_suggested():
    with pytest.raises(ValueError) as refused:
        check_kept([LiSSA()], 10, BLOCKS, limit=1e6)
    assert "fit_samples=" not in str(refused.value)


def test_scorers_that_stream_need_none():
    streaming = [TracIn(), DataInf(), HyperINF(), LiSSA(batch="stream"), Random()]
    check_kept(streaming, 10**9, BLOCKS, limit=0)


def test_kept_gradients_take_what_is_counted():
    accumulator = Exact().accumulator(torch.zeros(1, 3, 5))
    accumulator.update(Factor.from_dense(torch.ones(7, 3, 5)))
    (kept,) = accumulator.state().values()
    with pytest.raises(ValueError):
        check_kept([Exact()], 7, {"w": (3, 5)}, limit=kept.nbytes - 1)
    check_kept([Exact()], 7, {"w": (3, 5)}, limit=kept.nbytes)


# What accumulators hold, and where

SCORERS = [
    TracIn(),
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
SHAPES = [(6, 9), (9, 6), (1, 5)]


def draw(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(dtype) / 4


def gathered(scorer, shape, dtype=torch.float32, zeros=None, n=8, targets=3):
    """An accumulator after two batches, placed if `zeros` is given."""
    accumulator = scorer.accumulator(draw(targets, *shape, dtype=dtype), 0.1)
    if zeros is not None:
        accumulator.place(zeros)
    gradients = draw(n, *shape, dtype=dtype)
    for batch in (gradients[:3], gradients[3:]):
        accumulator.update(Factor.from_dense(batch))
    return accumulator


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scorer", SCORERS, ids=repr)
def test_held_bytes_are_those_of_the_state(scorer, shape, dtype):
    state = gathered(scorer, shape, dtype).state()
    held = sum(tensor.nbytes for key, tensor in state.items() if key not in ("count", "steps"))  # numbers otherwise
    assert scorer.held_bytes(*shape, 3, 8, dtype.itemsize) == held


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
    expected = gathered(scorer, shape)
    h = expected.solve()
    for place in ("device", "host", "disk"):
        zeros = Noting(zeros_at(place, "cpu", tmp_path))
        placed = gathered(scorer, shape, zeros=zeros)
        resumed = scorer.accumulator(placed.targets, 0.1)
        resumed.place(zeros)
        resumed.load_state({key: tensor.clone() for key, tensor in placed.state().items()})
        assert bool(zeros.made) == scorer.follows_place
        assert torch.equal(placed.solve(), h) and torch.equal(resumed.solve(), h)
        assert placed.details == resumed.details == expected.details


def test_nothing_is_made_before_the_first_update():
    accumulator = HyperINF().accumulator(torch.zeros(1, 4, 4))
    zeros = Noting(zeros_at("host", "cpu"))
    accumulator.place(zeros)
    assert zeros.made == []
    accumulator.update(Factor.from_dense(torch.ones(1, 4, 4)))
    assert len(zeros.made) == 1 and zeros.made[0].data_ptr() == accumulator.state()["gram"].data_ptr()


@pytest.mark.parametrize("scorer", [HyperINF(), HyperINF(solver="cholesky"), Exact(), LiSSA()], ids=repr)
def test_solving_drops_what_was_gathered_and_a_second_time_is_refused(scorer):
    zeros = Noting(zeros_at("device", "cpu"))
    accumulator = gathered(scorer, (6, 9), zeros=zeros)
    made = [weakref.ref(tensor) for tensor in zeros.made]
    zeros.made.clear()
    accumulator.solve()
    gc.collect()
    assert made and not any(each() is not None for each in made)
    with pytest.raises(RuntimeError, match="used up"):
        accumulator.solve()
    with pytest.raises(RuntimeError, match="used up"):
        accumulator.state()


def peak_bytes(call):
    """Return the most bytes that torch took during a call beyond what it held, temporaries of operations included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        kept = call()
    held = peak = 0
    for event in sorted(seen.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    del kept
    return peak


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [4, 60])
@pytest.mark.parametrize("scorer", SCORERS, ids=repr)
def test_solving_takes_no_more_than_is_counted(scorer, n, dtype):
    shape = (24, 30)
    accumulator = gathered(scorer, shape, dtype, n=n)
    accumulator.state()  # joins what is kept
    assert peak_bytes(accumulator.solve) <= scorer.solve_bytes(*shape, 3, n, dtype.itemsize) + 128  # a few numbers


@pytest.mark.parametrize(
    "scorer, matrices",
    [
        (HyperINF(), 2 + schulz.PANEL / 768),
        (HyperINF.official(), 2 + schulz.PANEL / 768),
        (HyperINF(solver="cholesky"), 0),
        (HyperINF(dtype="float64", solver="cholesky"), 0),
    ],
    ids=repr,
)
def test_matrices_alive_beside_that_of_the_block(scorer, matrices):
    """In float32: X, the error and some rows; Cholesky overwrites the matrix."""
    d = 768
    accumulator = gathered(scorer, (4, d), targets=1)
    found = peak_bytes(accumulator.solve) / (4 * d * d)
    assert matrices <= found < matrices + 0.1
    assert scorer.solve_bytes(4, d, 1, 8) >= found * 4 * d * d


def narrow(n, d):
    """Gradients [n, 2, d] whose GFIM has eigenvalues down to 1e-12 of the greatest, along no axis; float32."""
    q = torch.linalg.qr(draw(d, d, dtype=torch.float64)).Q
    return ((draw(n, 2, d, dtype=torch.float64) * torch.logspace(0, -6, d, dtype=torch.float64)) @ q.T).float()


def test_where_schulz_does_not_converge_no_fourth_matrix_is_made():
    scorer, d = HyperINF(damping=1e-3), 600
    accumulator = scorer.accumulator(draw(1, 2, d))
    accumulator.update(Factor.from_dense(narrow(700, d)))
    peak = peak_bytes(accumulator.solve)
    assert not accumulator.details["converged"]
    assert peak <= scorer.solve_bytes(2, d, 1, 700) and peak / (4 * d * d) < 3


# Together

BATCHED = [HyperINF(), HyperINF(solver="cholesky"), HyperINF(side="short"), HyperINF(dtype="float64")]


def various(scorer, dtype=torch.float32):
    """Accumulators of blocks of two sizes, with one where there is no gradient and one of another scorer among them."""
    blocks = [(6, 9), (9, 6), (6, 9), (4, 9), (6, 9), (40, 30)]
    found = []
    for number, shape in enumerate(blocks):
        accumulator = scorer.accumulator(draw(2, *shape, dtype=dtype))
        gradients = draw(5 + number, *shape, dtype=dtype) * 10.0**-number
        accumulator.update(Factor.from_dense(torch.zeros_like(gradients) if number == 2 else gradients))
        found.append(accumulator)
    return [*found[:3], gathered(Exact(), (6, 9), dtype), *found[3:]]


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("scorer", BATCHED, ids=repr)
def test_solved_together_is_solved_one_by_one(scorer, dtype, tolerance):
    together, alone = various(scorer, dtype), various(scorer, dtype)
    for found, one, each in zip(solve_together(together), alone, together, strict=True):
        expected = one.solve()
        assert found.shape == expected.shape and found.dtype == expected.dtype
        assert (found - expected).norm() <= tolerance * expected.norm()
        assert each.details.keys() == one.details.keys()
        for key, value in one.details.items():
            assert each.details[key] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-4, abs=1e-6))
    assert len({len(one.details["residuals"]) for one in alone if "residuals" in one.details}) != 1  # not all at once


def test_blocks_of_equal_size_are_one_batch(monkeypatch):
    sizes, own = [], schulz.inverses
    monkeypatch.setattr(schulz, "inverses", lambda a, *rest: sizes.append(len(a)) or own(a, *rest))
    solve_together([gathered(HyperINF(), (6, 9)) for _ in range(5)] + [gathered(HyperINF(name="b"), (6, 9))])
    assert sorted(sizes) == [1, 5]
    sizes.clear()
    monkeypatch.setattr(together_module, "BATCH", 2 * 81)
    solve_together([gathered(HyperINF(), (6, 9)) for _ in range(5)])
    assert sizes == [2, 2, 1]
    sizes.clear()
    solve_together([gathered(HyperINF(), (6, together_module.LARGEST_ON_CPU + 1)) for _ in range(2)])
    assert sizes == [1, 1]


def hard():
    """Three blocks, with one among them that float32 does not converge on."""
    accumulators = []
    for gradients in (draw(60, 2, 20), narrow(60, 20), draw(61, 2, 20)):
        accumulators.append(HyperINF(damping=1e-3).accumulator(draw(1, 2, 20)))
        accumulators[-1].update(Factor.from_dense(gradients))
    return accumulators


def test_one_that_does_not_converge_falls_back_by_itself():
    together, alone = hard(), hard()
    for found, one in zip(solve_together(together), alone, strict=True):
        expected = one.solve()
        assert (found - expected).norm() <= 1e-6 * expected.norm()
    assert [one.details["converged"] for one in together] == [True, False, True]
    assert [one.details["solver"] for one in together] == [one.details["solver"] for one in alone]
    assert together[1].details["solver"].startswith("cholesky in float64")


def test_one_that_is_not_positive_definite_is_named():
    gradients = draw(1, 2, 60) * 1e3
    ones = [gathered(HyperINF(1e-13, solver="cholesky", name="mine"), (2, 60), n=80)]
    ones.append(HyperINF(1e-13, solver="cholesky", name="mine").accumulator(draw(3, 2, 60)))
    ones[1].update(Factor.from_dense(gradients))
    with pytest.raises(ValueError, match=r"mine on a block \[2, 60\]: .* not positive .* or use .*dtype='float64'"):
        solve_together(ones)


def test_a_plug_in_that_knows_nothing_of_places_or_batches_goes_on():
    class Sum(Accumulator):
        def __init__(self, targets):
            super().__init__(targets)
            self.total = torch.zeros((), dtype=torch.float64)

        def update(self, factor):
            self.count += factor.samples
            self.total += factor.sq_norm().double().sum()

        def solve(self):
            return self.targets * (float(self.total) / max(1, self.count))

        def state(self):
            return {"count": torch.tensor(self.count), "total": self.total}

        def load_state(self, state):
            self.count = int(state["count"])
            self.total.copy_(state["total"])

    @dataclass(frozen=True)
    class Plug(Scorer):
        name: str = "Plug"

        def accumulator(self, targets, mean_square=None):
            return Sum(targets)

    check_scorer(Plug())
    one = gathered(Plug(), (6, 9), zeros=zeros_at("host", "cpu"))
    assert torch.equal(solve_together([one])[0], one.solve())
