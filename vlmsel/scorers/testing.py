"""The battery that every scorer must pass, built-in or plug-in: `check_scorer(MyScorer())`.

What it asks for is what the two passes over a pool rely on. They cut the pool into batches of any size, deal them among
processes, stack all targets of a block, stop and resume, run out of memory, meet samples without a gradient, and run in
float32. It compares in float64 and on small blocks of every form, in seconds, and says in one sentence what was
expected where a scorer fails.

Hyper-parameters matter: check a scorer with the ones that you use.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vlmsel.gradients import Factor
from vlmsel.gradients.factors import OuterFactor
from vlmsel.scorers.base import FeatureScorer, GradientScorer, Samples, SampleScorer, Scorer, Solved
from vlmsel.scorers.kronecker import Basis, TokenMoments
from vlmsel.scorers.statistics import BlockTargets, Statistic

SHAPES = ((6, 3), (3, 7), (1, 5))  # tall, wide, one row
SAMPLES, TOKENS, TARGETS = 9, 4, 2  # more samples than entries on the last block, fewer on the others
EXACT, ROUNDED = 1e-6, 1e-2  # relative difference allowed in float64, and of float32 from float64


def check_scorer(scorer: Scorer) -> None:
    """Run the battery.

    Raises:
        AssertionError: the scorer fails; one sentence says what was expected.

    >>> from vlmsel.scorers import TracIn
    >>> check_scorer(TracIn())
    """
    _run(check_settings, scorer, type(scorer).__name__)
    if isinstance(scorer, SampleScorer):
        _run(check_samples, scorer, scorer.name)
        return
    assert isinstance(scorer, GradientScorer)
    for rows, cols in SHAPES:
        trial = _Trial(scorer, *_problem(rows, cols))
        for check in BLOCK_CHECKS:
            _run(check, trial, f"{scorer.name} on a block [{rows}, {cols}]")


def _run(check: Callable[[Any], None], subject: Any, who: str) -> None:
    """Run one check; whatever a scorer raises by itself fails it, told with what the check is about."""
    try:
        check(subject)
    except _Unmet as unmet:
        raise AssertionError(f"{who}: {unmet}") from None
    except Exception as problem:
        about, raised = (" ".join(text.split()) for text in (check.__doc__ or "", str(problem)))
        raise AssertionError(f"{who}: {about} It raised {type(problem).__name__}: {raised}") from problem


class _Unmet(Exception):
    """An expectation that a scorer does not meet."""


def check_settings(scorer: Scorer) -> None:
    """Expected a frozen dataclass with a name, which equals a scorer made from its own fields."""
    kinds = isinstance(scorer, GradientScorer), isinstance(scorer, SampleScorer)
    _expect(kinds in ((True, False), (False, True)), "expected a vlmsel.scorers.GradientScorer or a SampleScorer")
    frozen = is_dataclass(scorer) and type(scorer).__dataclass_params__.frozen  # type: ignore[attr-defined]
    _expect(frozen, "expected a frozen dataclass, so that a run can be replayed from its fields")
    name = getattr(scorer, "name", None)
    proper = isinstance(name, str) and bool(name) and "/" not in name
    _expect(proper, f"expected a name that is a text without '/', the prefix of its columns; got {name!r}")
    named = "name" in {field.name for field in fields(scorer) if field.init}  # type: ignore[arg-type]
    _expect(named, "expected `name` to be a field, so that two settings of one scorer can be told apart")
    for flag in ("normalised", "needs_mean_square") if kinds[0] else ():
        value = getattr(scorer, flag)
        _expect(isinstance(value, bool), f"expected `{flag}` to be True or False, got {value!r}")
    same = replace(scorer) == scorer  # type: ignore[type-var]
    _expect(same, "expected a scorer made from the same fields to be equal; compare by the fields alone")


def check_samples(scorer: SampleScorer) -> None:
    """Expected scores without gradients to be a function of the sample and the target alone."""
    uids, names = [3, 1, 4, 15, 92], ["first", "second"]
    scores = _scores(scorer, uids, names)
    _expect(bool(torch.isfinite(scores).all()), "expected finite scores")
    _expect(torch.equal(_scores(scorer, uids, names), scores), "expected the same scores when they are asked for again")
    if not isinstance(scorer, FeatureScorer):  # whose features may depend on the whole pool
        order = [4, 0, 2]
        _expect(
            torch.equal(_scores(scorer, [uids[i] for i in order], names), scores[:, order]),
            "expected a sample's score to depend on that sample, not on those scored with it",
        )
    _expect(
        torch.equal(_scores(scorer, uids, names[1:]), scores[1:]),
        "expected a target's scores to depend on that target, not on those scored with it",
    )


def _scores(scorer: SampleScorer, uids: Sequence[int], names: Sequence[str]) -> Tensor:
    scores = scorer.score(_samples(uids), {name: _samples([len(name), len(name) + 1]) for name in names})
    shape = (len(names), len(uids))
    _expect(tuple(scores.shape) == shape, f"expected scores of shape {shape}, got {tuple(scores.shape)}")
    return scores


def _samples(uids: Sequence[int]) -> Samples:
    """Make up samples, each a function of its uid."""
    losses, tokens = torch.tensor([1 + uid / 7 for uid in uids]), torch.tensor([3 + uid % 5 for uid in uids])
    sources, texts = [f"source {uid % 2}" for uid in uids], [f"word{uid} and word{uid // 2}" for uid in uids]
    vectors = torch.tensor([[uid % 7 - 3, uid % 4, 1] for uid in uids], dtype=torch.float32)
    return Samples(torch.tensor(uids), losses, tokens, sources, lambda: texts, lambda kind: vectors)


def _problem(rows: int, cols: int) -> tuple[OuterFactor, Tensor]:
    """Draw gradients of a few tokens each, on the scale of a network's, and targets that are like them."""
    generator = torch.Generator().manual_seed(rows * 100 + cols)
    left, right, targets = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((SAMPLES, TOKENS, rows), (SAMPLES, TOKENS, cols), (TARGETS, rows, cols))
    )
    return OuterFactor(left / 4, right / 4), targets / 4


@dataclass(frozen=True)
class _Trial:
    """A scorer on one block: the factor of the fit samples' gradients and the targets [k, rows, cols]."""

    scorer: GradientScorer
    factor: OuterFactor
    targets: Tensor

    def start(self, targets: Tensor | None = None, factor: Factor | None = None) -> Statistic | None:
        """Start the statistic; it is told the mean square of the factor's gradients only where it needs that."""
        targets, factor = self.targets if targets is None else targets, factor or self.factor
        square = _mean_square(factor) if self.scorer.needs_mean_square else None
        return self.scorer.statistic(BlockTargets(targets, square, self.basis(factor)))

    def basis(self, factor: Factor) -> Basis | None:
        """Return the eigenbasis of a factor's tokens, or of the trial's where it has none, if the scorer needs one."""
        if not self.scorer.needs_basis:
            return None
        moments = TokenMoments(BlockTargets(self.targets.to(factor.values)))
        moments.update(factor if isinstance(factor, OuterFactor) else self.factor)
        return moments.basis()

    @property
    def tokens(self) -> bool:
        """Whether the statistic looks at tokens."""
        statistic = self.start()
        return statistic is not None and statistic.tokens

    def finish(self, statistic: Statistic | None, targets: Tensor | None = None) -> Solved:
        """Solve; what is not a `Solved` is no solution."""
        solved = self.scorer.solve(statistic, self.targets if targets is None else targets)
        _expect(isinstance(solved, Solved), f"expected `solve` to return Solved(h, details), got {type(solved)}")
        return solved

    def solve(self, targets: Tensor | None = None, factor: Factor | None = None) -> Tensor:
        """Return P v after one batch of all samples."""
        return self.finish(_gather(self.start(targets, factor), [factor or self.factor]), targets).h

    def batches(self) -> list[Factor]:
        """Cut the samples into three batches and an empty one, as an unlucky batch of broken samples is."""
        return [self.factor.select(slice(a, b)) for a, b in ((0, 2), (2, 3), (3, 3), (3, SAMPLES))]


def _check_output(trial: _Trial) -> None:
    """Expected h = P v in the shape of the targets, finite, and float64 for float64."""
    solved = trial.solve()
    shape = tuple(trial.targets.shape)
    _expect(tuple(solved.shape) == shape, f"expected h of the targets' shape {shape}, got {tuple(solved.shape)}")
    _expect(solved.dtype == torch.float64, f"expected float64 for float64 targets, got {solved.dtype}")
    _expect(bool(torch.isfinite(solved).all()), "expected finite numbers in h = P v")


def _check_details(trial: _Trial) -> None:
    """Expected `details` that JSON can hold, for they are written down with the scores."""
    json.dumps(trial.finish(_gather(trial.start(), [trial.factor])).details)


def _check_inputs_kept(trial: _Trial) -> None:
    """Expected targets, gradients and the statistic to be read only."""
    owned = (trial.factor.left, trial.factor.right, trial.targets)
    before = [tensor.clone() for tensor in owned]
    dense, formed = Factor.from_dense(trial.factor.dense()), trial.factor.dense()
    trial.solve()
    if not trial.tokens:
        trial.solve(factor=dense)
    same = all(torch.equal(a, b) for a, b in zip(owned, before, strict=True)) and torch.equal(dense.dense(), formed)
    _expect(same, "expected targets and gradients to be left as they are; other scorers read them too")
    statistic = _gather(trial.start(), [trial.factor])
    first, second = trial.finish(statistic).h, trial.finish(statistic).h
    _expect(torch.equal(first, second), "expected the same h from solving twice; other scorers use the statistic too")
    if statistic is not None:
        statistic.spendable = True
        spent = trial.finish(statistic).h
        _expect_near(spent, first, "expected the same h from a statistic that is `spendable`")


def _check_mean_square(trial: _Trial) -> None:
    """Expected the mean square to be used only where `needs_mean_square` is true."""
    if trial.scorer.needs_mean_square:
        return
    wrong = trial.scorer.statistic(
        BlockTargets(trial.targets, 1e3, trial.basis(trial.factor))
    )  # a wrong number, which must not matter
    found = trial.finish(_gather(wrong, [trial.factor])).h
    _expect_near(found, trial.solve(), "expected `mean_square` to change nothing, for `needs_mean_square` is false")


def _check_float32(trial: _Trial) -> None:
    """Expected to work in float32, close to float64."""
    factor = OuterFactor(trial.factor.left.float(), trial.factor.right.float())
    solved = trial.solve(trial.targets.float(), factor)
    _expect(solved.dtype == torch.float32, f"expected float32 for float32 targets, got {solved.dtype}")
    sentence = f"expected float32 within {ROUNDED:.0%} of float64; sum up or solve in float64"
    _expect_near(solved.double(), trial.solve(), sentence, ROUNDED)


def _check_linear(trial: _Trial) -> None:
    """Expected P to be linear in the targets."""
    first, second = trial.targets[:1], trial.targets[1:]
    both = 2 * trial.solve(first) - trial.solve(second)
    sentence = "expected P to be linear, P(2u - v) = 2 P u - P v, so that the mean of targets can be scored"
    _expect_near(trial.solve(2 * first - second), both, sentence)


def _check_targets_apart(trial: _Trial) -> None:
    """Expected each target's h to be what it is alone."""
    alone = torch.cat([trial.solve(target[None]) for target in trial.targets])
    sentence = "expected each target's h to be what it is alone, whatever targets it is stacked with"
    _expect_near(trial.solve(), alone, sentence)
    _expect(len(trial.solve(trial.targets[:0])) == 0, "expected no h for no target")


def _check_batches(trial: _Trial) -> None:
    """Expected the same h however the samples are cut into batches."""
    if (first := trial.start()) is None or first.ordered:
        return
    whole, batches = trial.solve(), trial.batches()
    cut, turned = (trial.finish(_gather(trial.start(), some)).h for some in (batches, batches[::-1]))
    sentence = "expected the same h from one batch as from several, an empty one among them; or set `ordered`"
    _expect_near(cut, whole, sentence)
    _expect_near(turned, whole, "expected the same h in any order of the batches; or set `ordered`")
    if first.tokens:
        return
    formed = trial.solve(factor=Factor.from_dense(trial.factor.dense()))
    _expect_near(formed, whole, "expected the same h from formed gradients as from factors of tokens")


def _check_resume(trial: _Trial) -> None:
    """Expected to go on exactly from a copy of its state, a dictionary of tensors."""
    batches = trial.batches()
    through, first, second = _gather(trial.start(), batches), _gather(trial.start(), batches[:2]), trial.start()
    if through is None or first is None or second is None:
        return
    saved = _copied(first)
    second.load(saved)
    kept = {key: value.clone() for key, value in saved.items()}
    _gather(second, batches[2:])
    untouched = all(torch.equal(saved[key], kept[key]) for key in kept)
    _expect(untouched, "expected `load` to copy what it is given rather than to go on in it")
    _expect(second.count == through.count, "expected `load` to restore the count of samples")
    met = torch.equal(trial.finish(second).h, trial.finish(through).h)
    _expect(met, "expected a resumed pass to end exactly as one that was never stopped; `tensors` lacks something")


def _check_merge(trial: _Trial) -> None:
    """Expected what several processes gathered to be merged into what one gathers."""
    batches = trial.batches()
    if (merged := trial.start()) is None or merged.ordered:
        return
    for dealt in (batches[:2], [], batches[2:]):
        merged.merge(_copied(_gather(trial.start(), dealt)))
    _expect(merged.count == SAMPLES, "expected `merge` to add the counts of samples")
    sentence = "expected the same h from several processes' statistics merged as from one, though a process have no"
    _expect_near(trial.finish(merged).h, trial.solve(), f"{sentence} sample; `merge` adds up tensors unless told")


class _FullAt(TorchDispatchMode):
    """Runs out of memory at the allocation of this number, counted from 0."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.left = number

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returns = func._schema.returns
        if any(one.alias_info is None for one in returns) and not func._schema.is_mutable:
            self.left -= 1
            if self.left == -1:
                raise torch.OutOfMemoryError("out of memory, to see what is left")
        return func(*args, **(kwargs or {}))


def _check_out_of_memory(trial: _Trial) -> None:
    """Expected an update that runs out of memory to have taken in nothing."""
    first, second = (trial.factor.select(some) for some in (slice(0, 4), slice(4, SAMPLES)))
    if (statistic := _gather(trial.start(), [first])) is None:
        return
    before = _copied(statistic)
    for number in range(200):
        try:
            with _FullAt(number):
                statistic.update(second)
            return  # fewer allocations than that
        except torch.OutOfMemoryError:
            after = statistic.state()
            same = statistic.count == 4 and all(torch.equal(before[key], after[key]) for key in before)
            _expect(
                same, "expected an update that runs out of memory to have taken in nothing: allocate before you change"
            )


def _check_planned(trial: _Trial) -> None:
    """Expected a statistic to start for targets without numbers and to say how many bytes it will hold."""
    planned, gathered = trial.start(trial.targets.to("meta")), _gather(trial.start(), trial.batches())
    if planned is None or gathered is None:
        return
    held, told = sum(tensor.nbytes for tensor in gathered.tensors().values()), planned.bytes(SAMPLES)
    _expect(told >= held, f"expected `bytes({SAMPLES})` to be what is held then, {held} bytes, got {told}")
    hash(planned.key)


def _copied(statistic: Statistic | None) -> dict[str, Tensor]:
    """Return a copy of a state, as a file or another process has it."""
    assert statistic is not None
    state = statistic.state()
    tensors = all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items())
    _expect(tensors, "expected `tensors` to be a dictionary of tensors, for they are written to a file")
    return {key: value.clone() for key, value in state.items()}


def _check_zero_gradients(trial: _Trial) -> None:
    """Expected finite numbers from samples that have no gradient on the block, and from no sample."""
    nothing = OuterFactor(torch.zeros_like(trial.factor.left), trial.factor.right)
    for factor, which in ((nothing, "samples without a gradient"), (nothing.select(slice(0, 0)), "no sample at all")):
        solved = trial.solve(factor=factor)
        met = bool(torch.isfinite(solved).all()) and not bool(nothing.inner(solved).any())
        _expect(met, f"expected finite h, and so scores of 0, from {which} on the block")


def _check_zero_sample(trial: _Trial) -> None:
    """Expected a sample without a gradient on the block to score zero and to leave the others finite."""
    left = trial.factor.left.clone()
    left[3] = 0
    factor: Factor = OuterFactor(left, trial.factor.right)
    factor = factor if trial.tokens else Factor.from_dense(factor.dense())
    scores = factor.inner(trial.solve(factor=factor))
    _expect(
        bool(torch.isfinite(scores).all()) and not bool(scores[:, 3].any()),
        "expected a sample without a gradient among others to score 0 and to leave their scores finite",
    )


def _gather(statistic: Statistic | None, batches: Sequence[Factor]) -> Statistic | None:
    for batch in batches if statistic is not None else ():
        statistic.update(batch)  # type: ignore[union-attr]
    return statistic


def _mean_square(factor: Factor) -> float:
    return float(factor.sq_norm().sum()) / max(1, factor.samples * factor.rows * factor.cols)


def _expect_near(found: Tensor, expected: Tensor, sentence: str, tolerance: float = EXACT) -> None:
    """Compare by norm; not met where anything is not finite."""
    _expect(bool((found - expected).norm() <= tolerance * expected.norm()), sentence)


def _expect(met: Any, sentence: str) -> None:
    if not met:
        raise _Unmet(sentence)


# In this order, so that a scorer which writes into its inputs is told so rather than blamed for the sequel.
BLOCK_CHECKS: tuple[Callable[[_Trial], None], ...] = (
    _check_output,
    _check_details,
    _check_inputs_kept,
    _check_mean_square,
    _check_float32,
    _check_linear,
    _check_targets_apart,
    _check_batches,
    _check_resume,
    _check_merge,
    _check_out_of_memory,
    _check_planned,
    _check_zero_gradients,
    _check_zero_sample,
)
