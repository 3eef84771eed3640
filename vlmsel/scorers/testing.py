"""The battery that every scorer must pass, built-in or plug-in: `check_scorer(MyScorer())`.

What it asks for is what the two passes over a pool rely on. They cut the pool into batches of any size, stack all
targets of a block, stop and resume, meet samples without a gradient, and run in float32. It compares in float64 and on
small blocks of every form, in a second or less, and says in one sentence what was expected where a scorer fails.

Hyper-parameters matter: check a scorer with the ones that you use.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vlmsel.gradients import Factor
from vlmsel.gradients.factors import OuterFactor
from vlmsel.scorers.base import Accumulator, Scorer
from vlmsel.scoring.arrays import score_gradients

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
    if not scorer.uses_gradients:
        _run(check_draws, scorer, scorer.name)
        return
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
    _expect(isinstance(scorer, Scorer), "expected a vlmsel.scorers.Scorer")
    frozen = is_dataclass(scorer) and type(scorer).__dataclass_params__.frozen  # type: ignore[attr-defined]
    _expect(frozen, "expected a frozen dataclass, so that a run can be replayed from its fields")
    name = getattr(scorer, "name", None)
    proper = isinstance(name, str) and bool(name) and "/" not in name
    _expect(proper, f"expected a name that is a text without '/', the prefix of its columns; got {name!r}")
    named = "name" in {field.name for field in fields(scorer) if field.init}  # type: ignore[arg-type]
    _expect(named, "expected `name` to be a field, so that two settings of one scorer can be told apart")
    normalised = scorer.normalised
    _expect(isinstance(normalised, bool), f"expected `normalised` to be True or False, got {normalised!r}")
    _expect(scorer.uses_gradients or not normalised, "expected no `normalised` of a scorer that uses no gradients")
    same = replace(scorer) == scorer  # type: ignore[type-var]
    _expect(same, "expected a scorer made from the same fields to be equal; compare by the fields alone")


def check_draws(scorer: Scorer) -> None:
    """Expected scores without gradients to be a function of (uid, target, seed) alone."""
    uids, targets = torch.tensor([3, 1, 4, 15, 92]), ["first", "second"]
    drawn = _draw(scorer, uids, targets)
    _expect(bool(torch.isfinite(drawn).all()), "expected finite scores")
    _expect(torch.equal(_draw(scorer, uids, targets), drawn), "expected the same draw when it is repeated")
    order = torch.tensor([4, 0, 2])
    _expect(
        torch.equal(_draw(scorer, uids[order], targets), drawn[:, order]),
        "expected a sample's score to depend on its uid, not on the samples drawn with it",
    )
    _expect(
        torch.equal(_draw(scorer, uids, targets[1:]), drawn[1:]),
        "expected a target's scores to depend on its name, not on the targets drawn with it",
    )


def _draw(scorer: Scorer, uids: Tensor, targets: Sequence[str]) -> Tensor:
    draw = getattr(scorer, "draw", None)
    _expect(callable(draw), "expected `draw(uids, targets)`, since it uses no gradients")
    drawn = draw(uids, list(targets))  # type: ignore[misc]
    shape = (len(targets), len(uids))
    _expect(tuple(drawn.shape) == shape, f"expected scores of shape {shape}, got {tuple(drawn.shape)}")
    return drawn


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

    scorer: Scorer
    factor: OuterFactor
    targets: Tensor

    def start(self, targets: Tensor | None = None, factor: Factor | None = None) -> Accumulator:
        """Start an accumulator; it is told the mean square of the factor's gradients only where it needs that."""
        targets, factor = self.targets if targets is None else targets, factor or self.factor
        if not self.scorer.needs_mean_square:
            return self.scorer.accumulator(targets)
        return self.scorer.accumulator(targets, _mean_square(factor))

    def solve(self, targets: Tensor | None = None, factor: Factor | None = None) -> Tensor:
        """Return P v after one batch of all samples."""
        accumulator = self.start(targets, factor)
        accumulator.update(factor or self.factor)
        return accumulator.solve()

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
    accumulator = trial.start()
    accumulator.update(trial.factor)
    accumulator.solve()
    json.dumps(accumulator.details)


def _check_inputs_kept(trial: _Trial) -> None:
    """Expected targets and gradients to be read only."""
    owned = (trial.factor.left, trial.factor.right, trial.targets)
    before = [tensor.clone() for tensor in owned]
    dense, formed = Factor.from_dense(trial.factor.dense()), trial.factor.dense()
    trial.solve()
    trial.solve(factor=dense)
    same = all(torch.equal(a, b) for a, b in zip(owned, before, strict=True)) and torch.equal(dense.dense(), formed)
    _expect(same, "expected targets and gradients to be left as they are; other scorers read them too")


def _check_mean_square(trial: _Trial) -> None:
    """Expected the mean square to be used only where `needs_mean_square` is true."""
    if trial.scorer.needs_mean_square:
        return
    accumulator = trial.scorer.accumulator(trial.targets, 1e3)  # a wrong number, which must not matter
    accumulator.update(trial.factor)
    met = _near(accumulator.solve(), trial.solve(), EXACT)
    _expect(met, "expected `mean_square` to change nothing, for `needs_mean_square` is false")


def _check_float32(trial: _Trial) -> None:
    """Expected to work in float32, close to float64."""
    factor = OuterFactor(trial.factor.left.float(), trial.factor.right.float())
    solved = trial.solve(trial.targets.float(), factor)
    _expect(solved.dtype == torch.float32, f"expected float32 for float32 targets, got {solved.dtype}")
    met = _near(solved.double(), trial.solve(), ROUNDED)
    _expect(met, f"expected float32 within {ROUNDED:.0%} of float64; sum up or solve in float64")


def _check_linear(trial: _Trial) -> None:
    """Expected P to be linear in the targets."""
    first, second = trial.targets[:1], trial.targets[1:]
    both = 2 * trial.solve(first) - trial.solve(second)
    met = _near(trial.solve(2 * first - second), both, EXACT)
    _expect(met, "expected P to be linear, P(2u - v) = 2 P u - P v, so that the mean of targets can be scored")


def _check_targets_apart(trial: _Trial) -> None:
    """Expected each target's h to be what it is alone."""
    alone = torch.cat([trial.solve(target[None]) for target in trial.targets])
    met = _near(trial.solve(), alone, EXACT)
    _expect(met, "expected each target's h to be what it is alone, whatever targets it is stacked with")
    none = trial.solve(trial.targets[:0])
    _expect(len(none) == 0, "expected no h for no target")


def _check_batches(trial: _Trial) -> None:
    """Expected the same h however the samples are cut into batches."""
    if trial.scorer.depends_on_batches:
        return
    whole, batches = trial.solve(), trial.batches()
    _expect(
        _near(_gather(trial.start(), batches).solve(), whole, EXACT),
        "expected the same h from one batch as from several, an empty one among them; or set depends_on_batches",
    )
    _expect(
        _near(_gather(trial.start(), batches[::-1]).solve(), whole, EXACT),
        "expected the same h in any order of the batches; or set depends_on_batches",
    )
    formed = trial.solve(factor=Factor.from_dense(trial.factor.dense()))
    _expect(_near(formed, whole, EXACT), "expected the same h from formed gradients as from factors of tokens")


def _check_resume(trial: _Trial) -> None:
    """Expected to go on exactly from a copy of its state, a dictionary of tensors."""
    batches = trial.batches()
    through = _gather(trial.start(), batches)
    first = _gather(trial.start(), batches[:2])
    state = first.state()
    tensors = all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items())
    _expect(tensors, "expected `state()` to be a dictionary of tensors, for it is written to a file of tensors")
    saved = {key: value.clone() for key, value in state.items()}
    second = trial.start()
    second.load_state(saved)
    kept = {key: value.clone() for key, value in saved.items()}
    _gather(second, batches[2:])
    untouched = all(torch.equal(saved[key], kept[key]) for key in kept)
    _expect(untouched, "expected `load_state` to copy what it is given rather than to go on in it")
    _expect(second.count == through.count, "expected `load_state` to restore the count of samples")
    met = torch.equal(second.solve(), through.solve())
    _expect(met, "expected a resumed pass to end exactly as one that was never stopped; `state` lacks something")


def _check_zero_gradients(trial: _Trial) -> None:
    """Expected finite numbers from samples that have no gradient on the block, and from no sample."""
    nothing = OuterFactor(torch.zeros_like(trial.factor.left), trial.factor.right)
    for factor, which in ((nothing, "samples without a gradient"), (nothing.select(slice(0, 0)), "no sample at all")):
        solved = trial.solve(factor=factor)
        met = bool(torch.isfinite(solved).all()) and not bool(nothing.inner(solved).any())
        _expect(met, f"expected finite h, and so scores of 0, from {which} on the block")


def _check_zero_sample(trial: _Trial) -> None:
    """Expected a sample without a gradient on the block to score zero and to leave the others finite."""
    gradients = trial.factor.dense().clone()
    gradients[3] = 0
    scores = score_gradients({"block": gradients}, {"block": trial.targets}, trial.scorer)
    _expect(
        bool(torch.isfinite(scores).all()) and not bool(scores[:, 3].any()),
        "expected a sample without a gradient among others to score 0 and to leave their scores finite",
    )


def _gather(accumulator: Accumulator, batches: Sequence[Factor]) -> Accumulator:
    for batch in batches:
        accumulator.update(batch)
    return accumulator


def _mean_square(factor: Factor) -> float:
    return float(factor.sq_norm().sum()) / max(1, factor.samples * factor.rows * factor.cols)


def _near(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Compare by norm; false where anything is not finite."""
    return bool((found - expected).norm() <= tolerance * expected.norm())


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
    _check_zero_gradients,
    _check_zero_sample,
)
