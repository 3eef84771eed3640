"""The battery passes every built-in scorer, and fails a plug-in for each thing that it looks at, saying what."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch

from vlmsel.gradients.factors import OuterFactor
from vlmsel.scorers import (
    EKFAC,
    KFAC,
    Adafactor,
    DataInf,
    Exact,
    GradientScorer,
    HyperINF,
    LiSSA,
    Random,
    SampleScorer,
    Solved,
    Statistic,
    TracIn,
    TwoSided,
)
from vlmsel.scorers.testing import check_scorer

BUILT_IN = [
    TracIn(),
    TracIn(block_scale=True, name="scaled"),
    TracIn(cosine=True, name="cosine"),
    Adafactor(),
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
    KFAC(),
    EKFAC(),
    TwoSided(),
    Random(),
    Random(seed=7, name="another"),
]


@pytest.mark.parametrize("scorer", BUILT_IN, ids=repr)
def test_built_in_scorers_pass(scorer):
    check_scorer(scorer)


class Squares(Statistic):
    """Σ ‖g‖²: right in every way; the broken ones differ in one thing."""

    def __init__(self, block):
        super().__init__(block)
        self.total = torch.zeros((), dtype=torch.float64)

    def gather(self, factor):
        self.total += factor.sq_norm().double().sum()

    def tensors(self):
        return {"total": self.total}

    def mean(self):
        return float(self.total) / max(1, self.count)


@dataclass(frozen=True)
class Plug(GradientScorer):
    """P v = v times the mean squared norm of the gradients; `after` makes something else of it."""

    gathers: Callable = Squares
    after: Callable = lambda h, statistic: Solved(h)
    name: str = "Plug"

    def statistic(self, block):
        return self.gathers(block)

    def solve(self, statistic, v):
        return self.after(v * statistic.mean(), statistic)


def fails(scorer, message):
    """Expect the battery to fail a scorer, in one sentence."""
    with pytest.raises(AssertionError, match=message) as failed:
        check_scorer(scorer)
    assert "\n" not in str(failed.value)


def test_a_right_plug_in_passes():
    check_scorer(Plug())


def one_row_fails(h, statistic):
    if h.shape[1] == 1:
        raise RuntimeError("rows and\ncolumns")
    return Solved(h)


def at_least_one(h, statistic):
    return Solved(h if len(h) else h.new_zeros(1, *h.shape[1:]))


def used_up(h, statistic):
    if statistic.spendable:
        statistic.total.zero_()
        return Solved(torch.zeros_like(h))
    return Solved(h)


@pytest.mark.parametrize(
    "after, message",
    [
        (
            lambda h, _: Solved(h.flatten(1)),
            r"Plug on a block \[6, 3\]: expected h of the targets' shape \(2, 6, 3\), got \(2, 18\)",
        ),
        (lambda h, _: h, r"expected `solve` to return Solved\(h, details\), got <class 'torch.Tensor'>"),
        (lambda h, _: Solved(h.float()), "expected float64 for float64 targets, got torch.float32"),
        (lambda h, _: Solved(h / torch.zeros(())), "expected finite numbers in h"),
        (lambda h, s: Solved(h, {"total": s.total}), "Expected `details` that JSON can hold.* It raised TypeError"),
        (lambda h, s: Solved(s.block.targets.mul_(2)), "expected targets and gradients to be left as they are"),
        (lambda h, s: (s.total.mul_(2), Solved(h))[1], "expected the same h from solving twice"),
        (used_up, "expected the same h from a statistic that is `spendable`"),
        (one_row_fails, r"Plug on a block \[1, 5\]: Expected h .* It raised RuntimeError: rows and columns$"),
        (lambda h, _: Solved(h.double()), "expected float32 for float32 targets, got torch.float64"),
        (
            lambda h, _: Solved(h if h.dtype == torch.float64 else 1.02 * h),
            "expected float32 within 1% of float64",
        ),
        (lambda h, _: Solved(h * h.abs()), "expected P to be linear"),
        (lambda h, _: Solved(h - h.mean(0)), "expected each target's h to be what it is alone"),
        (at_least_one, "expected no h for no target"),
        (
            lambda h, s: Solved(h / torch.tensor(s.mean())),
            "expected finite h, and so scores of 0, from samples without a gradient",
        ),
        (
            lambda h, s: Solved(h * (s.total / torch.tensor(s.count)).to(h)),
            "expected finite h, and so scores of 0, from no sample at all",
        ),
    ],
)
def test_a_solution_that_is_broken_is_told_what_was_expected(after, message):
    fails(Plug(after=after), message)


class WritesGradients(Squares):
    def gather(self, factor):
        super().gather(factor)
        factor.values.mul_(0.5)


class AssertsWithoutWords(Squares):
    def gather(self, factor):
        assert factor.samples == 0


class MeanOfMeans(Squares):
    """Every batch weighs the same, whatever its size."""

    def gather(self, factor):
        if factor.samples:
            self.total += factor.samples * factor.sq_norm().double()[0]


class NeedsSamples(Squares):
    def gather(self, factor):
        self.total += factor.sq_norm().double().sum() + 0 * factor.sq_norm().max()


class FirstBatch(Squares):
    """Looks at the scale of the first batch of samples."""

    def gather(self, factor):
        if factor.samples and not self.total:
            self.total += factor.sq_norm().double()[0]

    def mean(self):
        return float(self.total)


class TokensOnly(Squares):
    def gather(self, factor):
        super().gather(factor)
        if isinstance(factor, OuterFactor):
            self.total += factor.left.double().square().sum()


class Forgets(Squares):
    def tensors(self):
        return {}


class ForgetsCount(Squares):
    def load(self, state):
        self.total.copy_(state["total"])


class GoesOnInIt(Squares):
    def load(self, state):
        self.count, self.total = int(state["count"]), state["total"]


class PlainNumbers(Squares):
    def tensors(self):
        return {"total": float(self.total)}


class Mean(Squares):
    """Holds the mean itself, which adding up does not merge."""

    def gather(self, factor):
        whole = self.total * self.count + factor.sq_norm().double().sum()
        self.total = whole / max(1, self.count + factor.samples)

    def mean(self):
        return float(self.total)


class Merged(Mean):
    def merge(self, state):
        total, other = self.total * self.count, state["total"] * state["count"]
        self.count += int(state["count"])
        self.total = (total + other) / max(1, self.count)


class MergedByShare(Mean):
    """Divides by its own count, which may be 0."""

    def merge(self, state):
        share = state["count"] / torch.tensor(self.count)
        self.count += int(state["count"])
        self.total = (self.total + share * state["total"]) / (1 + share)


class MergesTensorsOnly(Squares):
    def merge(self, state):
        self.total += state["total"]


class CountsFirst(Squares):
    def update(self, factor):
        self.count += factor.samples
        self.gather(factor)


class SampleBySample(Squares):
    def gather(self, factor):
        for number in range(factor.samples):
            super().gather(factor.select(slice(number, number + 1)))


class ReadsTargets(Squares):
    def __init__(self, block):
        super().__init__(block)
        self.norm = float(block.targets.norm())


class Keeps(Squares):
    """Grows with the samples, but counts what it holds now."""

    def __init__(self, block):
        super().__init__(block)
        self.kept = torch.zeros(0, dtype=torch.float64)

    def gather(self, factor):
        self.kept = torch.cat([self.kept, factor.sq_norm().double()])

    def tensors(self):
        return {"kept": self.kept}

    def load(self, state):
        self.count, self.kept = int(state["count"]), state["kept"].clone()

    def merge(self, state):
        self.count, self.kept = self.count + int(state["count"]), torch.cat([self.kept, state["kept"]])

    def mean(self):
        return float(self.kept.sum()) / max(1, self.count)


class KeepsAndSays(Keeps):
    def bytes(self, samples):
        return 8 * samples


class Unhashable(Squares):
    key = {"squares"}


class Normalizes(Squares):
    """Sums g/‖g‖, which is no number for the one sample without a gradient."""

    def gather(self, factor):
        norms = factor.sq_norm().double().sqrt()
        if norms.any():
            self.total += (norms / norms).sum()


@pytest.mark.parametrize("gathers", [Merged, KeepsAndSays])
def test_other_right_statistics_pass(gathers):
    check_scorer(Plug(gathers))


@pytest.mark.parametrize(
    "gathers, message",
    [
        (WritesGradients, "expected targets and gradients to be left as they are"),
        (AssertsWithoutWords, r"Plug on a block \[6, 3\]: Expected h = P v .* It raised AssertionError"),
        (MeanOfMeans, "expected the same h from one batch as from several"),
        (NeedsSamples, "Expected the same h however the samples are cut into batches. It raised"),
        (FirstBatch, "expected the same h in any order of the batches"),
        (TokensOnly, "expected the same h from formed gradients as from factors of tokens"),
        (Forgets, "expected a resumed pass to end exactly as one that was never stopped"),
        (ForgetsCount, "expected `load` to restore the count of samples"),
        (GoesOnInIt, "expected `load` to copy what it is given"),
        (PlainNumbers, "expected `tensors` to be a dictionary of tensors"),
        (Mean, "expected the same h from several processes' statistics merged as from one.*; `merge` adds up tensors"),
        (MergedByShare, "expected the same h from several .* though a process have no sample"),
        (MergesTensorsOnly, "expected `merge` to add the counts of samples"),
        (
            CountsFirst,
            "expected an update that runs out of memory to have taken in nothing: allocate before you change",
        ),
        (SampleBySample, "expected an update that runs out of memory to have taken in nothing"),
        (ReadsTargets, "Expected a statistic to start for targets without numbers .* It raised RuntimeError"),
        (Keeps, r"expected `bytes\(9\)` to be what is held then, 72 bytes, got 0"),
        (Unhashable, "Expected a statistic .* It raised TypeError: unhashable type: 'set'"),
        (Normalizes, "expected a sample without a gradient among others to score 0"),
    ],
)
def test_a_statistic_that_is_broken_is_told_what_was_expected(gathers, message):
    fails(Plug(gathers), message)


class Ordered(MeanOfMeans):
    ordered = True


class OrderedForgets(Forgets):
    ordered = True


def test_a_statistic_that_says_so_may_depend_on_its_batches_but_must_resume():
    check_scorer(Plug(Ordered))
    fails(Plug(OrderedForgets), "a resumed pass")


@dataclass(frozen=True)
class Undeclared(GradientScorer):
    """Uses the mean square where it is given."""

    demanded: bool = False
    needs_mean_square: bool = False
    normalised: bool = False
    name: str = "Undeclared"

    def statistic(self, block):
        factor = block.damping(1.0, self.name) if self.demanded else block.mean_square or 1.0
        return Squares(replace(block, targets=block.targets * factor))

    def solve(self, statistic, v):
        return Solved(statistic.block.targets * statistic.mean())


def test_the_need_of_the_mean_square_must_be_declared():
    check_scorer(Undeclared(demanded=True, needs_mean_square=True))
    fails(Undeclared(), "expected `mean_square` to change nothing, for `needs_mean_square` is false")
    fails(Undeclared(demanded=True), "It raised ValueError: Undeclared needs the mean squared gradient entry")


class Undecorated(GradientScorer):
    name = "Undecorated"

    def solve(self, statistic, v):
        return Solved(v)


@dataclass
class Thawed(Undecorated):
    name: str = "Thawed"


@dataclass(frozen=True)
class FixedName(Undecorated):
    pass


@dataclass(frozen=True, eq=False)
class Identity(Undecorated):
    name: str = "Identity"


@pytest.mark.parametrize(
    "scorer, message",
    [
        (object(), "object: expected a vlmsel.scorers.GradientScorer or a SampleScorer"),
        (Undecorated(), "Undecorated: expected a frozen dataclass"),
        (Thawed(), "Thawed: expected a frozen dataclass"),
        (Plug(name="a/b"), "Plug: expected a name that is a text without '/'.*; got 'a/b'"),
        (Plug(name=""), "expected a name that is a text without '/'.*; got ''"),
        (Plug(name=None), "expected a name that is a text without '/'.*; got None"),
        (FixedName(), "FixedName: expected `name` to be a field"),
        (Identity(), "Identity: expected a scorer made from the same fields to be equal"),
        (Undeclared(normalised="yes"), "expected `normalised` to be True or False, got 'yes'"),
        (Undeclared(needs_mean_square=None), "expected `needs_mean_square` to be True or False, got None"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_settings_that_are_broken_are_told_what_was_expected(scorer, message):
    fails(scorer, message)


# Without gradients


@dataclass(frozen=True)
class Longest(SampleScorer):
    """A plug-in that looks at samples: longer than a target's are better; `function` makes something else of it."""

    function: Callable = lambda scores, samples: scores
    name: str = "Longest"

    def score(self, samples, targets):
        means = torch.stack([own.tokens.double().mean() for own in targets.values()])
        return self.function(means[:, None] - samples.tokens, samples)


@dataclass(frozen=True)
class Reads(Longest):
    """Looks at everything else that samples say."""

    def score(self, samples, targets):
        own = [len(text) + len(source) for text, source in zip(samples.texts, samples.sources, strict=True)]
        return super().score(samples, targets) + samples.losses + torch.tensor(own)


@pytest.mark.parametrize("scorer", [Longest(), Reads()])
def test_right_scorers_of_samples_pass(scorer):
    check_scorer(scorer)


def raises(scores, samples):
    raise KeyError("uid")


@pytest.mark.parametrize(
    "function, message",
    [
        (lambda scores, _: scores[0], r"Longest: expected scores of shape \(2, 5\), got \(5,\)"),
        (lambda scores, _: scores / 0.0, "Longest: expected finite scores"),
        (lambda scores, _: scores + torch.randn(1), "expected the same scores when they are asked for again"),
        (lambda scores, _: scores.argsort(1), "expected a sample's score to depend on that sample"),
        (lambda scores, _: scores.argsort(0), "expected a target's scores to depend on that target"),
        (raises, "Longest: Expected scores without gradients .* It raised KeyError"),
    ],
)
def test_scores_of_samples_that_are_broken_are_told_what_was_expected(function, message):
    fails(Longest(function), message)


@dataclass(frozen=True)
class Both(Longest, Plug):
    """Of both kinds."""


def test_a_scorer_is_of_one_kind():
    fails(Both(), "Both: expected a vlmsel.scorers.GradientScorer or a SampleScorer")
