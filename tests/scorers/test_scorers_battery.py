"""The battery passes every built-in scorer, and fails a plug-in for each thing that it looks at, saying what."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from vlmsel.gradients.factors import OuterFactor
from vlmsel.scorers import Accumulator, DataInf, Exact, HyperINF, LiSSA, Random, Scorer, TracIn
from vlmsel.scorers.testing import check_scorer

BUILT_IN = [
    TracIn(),
    TracIn(block_scale=True, name="scaled"),
    DataInf(),
    DataInf(damping=100.0),
    LiSSA(),
    LiSSA(depth=1, scale=0.01),
    LiSSA(batch="stream"),
    LiSSA.official(),
    HyperINF(),
    HyperINF(damping=100.0),
    HyperINF(side="short"),
    HyperINF(solver="cholesky"),
    HyperINF(dtype="float64"),
    HyperINF(curvature="fim"),
    HyperINF(curvature="fim", solver="cholesky"),
    HyperINF.official(),
    HyperINF.official_vlm(),
    Exact(),
    Random(),
    Random(seed=7, name="another"),
]


@pytest.mark.parametrize("scorer", BUILT_IN, ids=repr)
def test_built_in_scorers_pass(scorer):
    check_scorer(scorer)


class Squares(Accumulator):
    """P v = v times the mean squared norm of the gradients: right in every way; the broken ones differ in one thing."""

    def __init__(self, targets):
        super().__init__(targets)
        self.total = torch.zeros((), dtype=torch.float64)

    def update(self, factor):
        self.count += factor.samples
        self.total += factor.sq_norm().double().sum()

    def mean(self):
        return float(self.total) / max(1, self.count)

    def solve(self):
        return self.targets * self.mean()

    def state(self):
        return {"count": torch.tensor(self.count), "total": self.total}

    def load_state(self, state):
        self.count = int(state["count"])
        self.total.copy_(state["total"])


@dataclass(frozen=True)
class Plug(Scorer):
    make: Callable[[torch.Tensor], Accumulator] = Squares
    name: str = "Plug"

    def accumulator(self, targets, mean_square=None):
        return self.make(targets)


def test_a_right_plug_in_passes():
    check_scorer(Plug())


class WrongShape(Squares):
    def solve(self):
        return super().solve().flatten(1)


class AlwaysFloat32(Squares):
    def solve(self):
        return super().solve().float()


class NotFinite(Squares):
    def solve(self):
        return super().solve() / torch.zeros(())


class UnwrittenDetails(Squares):
    def solve(self):
        self.details = {"total": self.total}
        return super().solve()


class WritesTargets(Squares):
    def solve(self):
        return self.targets.mul_(self.mean())


class WritesGradients(Squares):
    def update(self, factor):
        super().update(factor)
        factor.values.mul_(0.5)


class NoSingleRow(Squares):
    def solve(self):
        if self.targets.shape[1] == 1:
            raise RuntimeError("rows and\ncolumns")
        return super().solve()


class AssertsWithoutWords(Squares):
    def update(self, factor):
        assert factor.samples == 0


class AlwaysFloat64(Squares):
    def solve(self):
        return super().solve().double()


class Imprecise(Squares):
    def solve(self):
        solved = super().solve()
        return solved if solved.dtype == torch.float64 else 1.02 * solved


class Squared(Squares):
    def solve(self):
        return super().solve() * self.targets.abs()


class Mixed(Squares):
    def solve(self):
        solved = super().solve()
        return solved - solved.mean(0)


class AtLeastOne(Squares):
    def solve(self):
        return super().solve() if len(self.targets) else self.targets.new_zeros(1, *self.targets.shape[1:])


class MeanOfMeans(Squares):
    """Every batch weighs the same, whatever its size."""

    def update(self, factor):
        if factor.samples:
            self.count += 1
            self.total += factor.sq_norm().double().mean()


class NeedsSamples(Squares):
    def update(self, factor):
        super().update(factor)
        self.total += 0 * factor.sq_norm().max()


class FirstSample(Squares):
    def update(self, factor):
        if not self.count and factor.samples:
            self.count, self.total = 1, factor.sq_norm().double()[0].clone()


class TokensOnly(Squares):
    def update(self, factor):
        super().update(factor)
        if isinstance(factor, OuterFactor):
            self.total += factor.left.double().square().sum()


class Forgets(Squares):
    def state(self):
        return {"count": torch.tensor(self.count)}

    def load_state(self, state):
        self.count = int(state["count"])


class ForgetsCount(Squares):
    def load_state(self, state):
        self.total.copy_(state["total"])


class GoesOnInIt(Squares):
    def load_state(self, state):
        self.count, self.total = int(state["count"]), state["total"]


class PlainState(Squares):
    def state(self):
        return {"count": self.count, "total": self.total}


class Divides(Squares):
    def solve(self):
        return self.targets / torch.tensor(self.mean())


class DividesEmpty(Squares):
    """Guards against gradients of zero but not against a pass without samples."""

    def solve(self):
        return self.targets * (self.total / torch.tensor(self.count)).to(self.targets)


class Normalizes(Squares):
    """Sums g/‖g‖, which is no number for the one sample without a gradient."""

    def update(self, factor):
        self.count += factor.samples
        norms = factor.sq_norm().double().sqrt()
        if norms.any():
            self.total += (norms / norms).sum()


@pytest.mark.parametrize(
    "make, message",
    [
        (WrongShape, r"Plug on a block \[6, 3\]: expected h of the targets' shape \(2, 6, 3\), got \(2, 18\)"),
        (AlwaysFloat32, "expected float64 for float64 targets, got torch.float32"),
        (NotFinite, "expected finite numbers in h"),
        (UnwrittenDetails, "Expected `details` that JSON can hold.* It raised TypeError"),
        (WritesTargets, "expected targets and gradients to be left as they are"),
        (WritesGradients, "expected targets and gradients to be left as they are"),
        (NoSingleRow, r"Plug on a block \[1, 5\]: Expected h .* It raised RuntimeError: rows and columns$"),
        (AssertsWithoutWords, r"Plug on a block \[6, 3\]: Expected h = P v .* It raised AssertionError"),
        (AlwaysFloat64, "expected float32 for float32 targets, got torch.float64"),
        (Imprecise, "expected float32 within 1% of float64"),
        (Squared, "expected P to be linear"),
        (Mixed, "expected each target's h to be what it is alone"),
        (AtLeastOne, "expected no h for no target"),
        (MeanOfMeans, "expected the same h from one batch as from several"),
        (NeedsSamples, "Expected the same h however the samples are cut into batches. It raised"),
        (FirstSample, "expected the same h in any order of the batches"),
        (TokensOnly, "expected the same h from formed gradients as from factors of tokens"),
        (Forgets, "expected a resumed pass to end exactly as one that was never stopped"),
        (ForgetsCount, "expected `load_state` to restore the count of samples"),
        (GoesOnInIt, "expected `load_state` to copy what it is given"),
        (PlainState, r"expected `state\(\)` to be a dictionary of tensors"),
        (Divides, "expected finite h, and so scores of 0, from samples without a gradient"),
        (DividesEmpty, "expected finite h, and so scores of 0, from no sample at all"),
        (Normalizes, "expected a sample without a gradient among others to score 0"),
    ],
)
def test_an_accumulator_that_is_broken_is_told_what_was_expected(make, message):
    with pytest.raises(AssertionError, match=message) as failed:
        check_scorer(Plug(make))
    assert "\n" not in str(failed.value)


@dataclass(frozen=True)
class Batchwise(Plug):
    @property
    def depends_on_batches(self):
        return True


def test_a_scorer_that_says_so_may_depend_on_its_batches_but_must_resume():
    check_scorer(Batchwise(MeanOfMeans))
    with pytest.raises(AssertionError, match="a resumed pass"):
        check_scorer(Batchwise(Forgets))


@dataclass(frozen=True)
class Undeclared(Scorer):
    """Uses the mean square where it is given."""

    name: str = "Undeclared"

    def accumulator(self, targets, mean_square=None):
        return TracIn().accumulator(targets * (mean_square or 1.0))


@dataclass(frozen=True)
class Declared(Undeclared):
    @property
    def needs_mean_square(self):
        return True


@dataclass(frozen=True)
class Needing(Undeclared):
    def accumulator(self, targets, mean_square=None):
        return DataInf().accumulator(targets, mean_square)


def test_the_need_of_the_mean_square_must_be_declared():
    check_scorer(Declared())
    with pytest.raises(
        AssertionError, match="expected `mean_square` to change nothing, for `needs_mean_square` is false"
    ):
        check_scorer(Undeclared())
    with pytest.raises(AssertionError, match="It raised ValueError: DataInf needs the mean squared gradient entry"):
        check_scorer(Needing())


class Undecorated(Scorer):
    name = "Undecorated"

    def accumulator(self, targets, mean_square=None):
        return Squares(targets)


@dataclass
class Thawed(Undecorated):
    name: str = "Thawed"


@dataclass(frozen=True)
class FixedName(Scorer):
    def accumulator(self, targets, mean_square=None):
        return Squares(targets)


FixedName.name = "FixedName"  # a plain attribute, not a field


@dataclass(frozen=True, eq=False)
class Identity(Scorer):
    name: str = "Identity"

    def accumulator(self, targets, mean_square=None):
        return Squares(targets)


@pytest.mark.parametrize(
    "scorer, message",
    [
        (object(), "object: expected a vlmsel.scorers.Scorer"),
        (Undecorated(), "Undecorated: expected a frozen dataclass"),
        (Thawed(), "Thawed: expected a frozen dataclass"),
        (Plug(name="a/b"), "Plug: expected a name that is a text without '/'.*; got 'a/b'"),
        (Plug(name=""), "expected a name that is a text without '/'.*; got ''"),
        (Plug(name=None), "expected a name that is a text without '/'.*; got None"),
        (FixedName(), "FixedName: expected `name` to be a field"),
        (Identity(), "Identity: expected a scorer made from the same fields to be equal"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_settings_that_are_broken_are_told_what_was_expected(scorer, message):
    with pytest.raises(AssertionError, match=message):
        check_scorer(scorer)


@dataclass(frozen=True)
class Draws(Scorer):
    """Scores without gradients, drawn by a function of its own."""

    function: Callable = Random().draw
    name: str = "Draws"

    @property
    def uses_gradients(self):
        return False

    def accumulator(self, targets, mean_square=None):
        raise NotImplementedError

    def draw(self, uids, targets):
        return self.function(uids, targets)


def test_right_draws_pass():
    check_scorer(Draws())


def raises(uids, targets):
    raise KeyError("uid")


@pytest.mark.parametrize(
    "function, message",
    [
        (lambda uids, targets: torch.zeros(len(uids)), r"Draws: expected scores of shape \(2, 5\), got \(5,\)"),
        (lambda uids, targets: torch.full((len(targets), len(uids)), torch.nan), "Draws: expected finite scores"),
        (lambda uids, targets: torch.randn(len(targets), len(uids)), "expected the same draw when it is repeated"),
        (
            lambda uids, targets: torch.arange(len(uids)).expand(len(targets), -1).float(),
            "expected a sample's score to depend on its uid",
        ),
        (
            lambda uids, targets: torch.arange(len(targets)).float()[:, None] + uids,
            "expected a target's scores to depend on its name",
        ),
        (raises, r"Expected scores without gradients .* It raised KeyError"),
    ],
)
def test_draws_that_are_broken_are_told_what_was_expected(function, message):
    with pytest.raises(AssertionError, match=message):
        check_scorer(Draws(function))


@dataclass(frozen=True)
class Undrawn(Scorer):
    name: str = "Undrawn"

    @property
    def uses_gradients(self):
        return False

    def accumulator(self, targets, mean_square=None):
        raise NotImplementedError


def test_a_scorer_without_gradients_must_draw():
    with pytest.raises(AssertionError, match=r"Undrawn: expected `draw\(uids, targets\)`"):
        check_scorer(Undrawn())
