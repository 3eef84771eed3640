"""TracIn over several checkpoints of one training run (TracInCP, Pruthi et al. 2020, arXiv 2002.08484):

    I(i, t) = -Σ_c η_c ⟨v_t,c, g_i,c⟩,

the sum over checkpoints c of learning rate times the scores at c; with the cosine form it is LESS's sum (arXiv
2402.04333), without Adam. Lowest = most helpful. The checkpoints' trained parts are put into the subject that was
scored, one after the other, so that backbones are loaded once; what makes a checkpoint another model is refused before
anything is scored. Each is scored as any pool is, into `checkpoints/<c>` of the run folder, so that a killed run goes
on within the checkpoint that it had come to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vlmsel import processes, runs
from vlmsel.checks import check_positive
from vlmsel.models.same_make import find_checkpoint, folder_digest
from vlmsel.models.subject import Subject
from vlmsel.scorers import GradientScorer, Scorer
from vlmsel.scorers.base import gradient_scorers
from vlmsel.scoring.pool_pass import Scored

SUFFIX = ".CP"


@dataclass(frozen=True)
class Checkpoints:
    """Checkpoints in the order they were given: what the user calls them, their folders, and learning rates."""

    names: tuple[str, ...] = ()
    folders: tuple[Path, ...] = ()
    rates: tuple[float, ...] = ()
    scorers: tuple[GradientScorer, ...] = ()

    @classmethod
    def open(
        cls,
        subject: Subject,
        names: Sequence[str] | None,
        rates: Sequence[float] | None,
        scorers: Sequence[Scorer],
        allow_untrained: bool = False,
    ) -> Checkpoints:
        """Check checkpoints against the model whose place they will take; none are fine too.

        Raises:
            FileNotFoundError: a folder holds no model.
            ValueError: numbers or rates are wrong, no scorer is of first order, or a checkpoint is of another make.
        """
        if not names and not rates:
            return cls()
        names, rates = tuple(names or ()), tuple(rates or ())
        if len(names) != len(rates):
            counts = f"{len(names)} checkpoints and {len(rates)} learning rates"
            raise ValueError(f"{counts}; give as many --checkpoint_lrs as --checkpoints")
        for rate in rates:
            check_positive(checkpoint_lrs=rate)
        chosen = first_order(scorers)
        if not chosen:
            raise ValueError("--checkpoints sums TracIn over checkpoints; add TracIn to --scorers, or leave them out")
        folders = tuple(find_checkpoint(subject, name, allow_untrained) for name in names)
        return cls(names, folders, rates, tuple(chosen))

    def inputs(self) -> dict[str, str]:
        """Name the checkpoints by their content."""
        pairs = zip(self.names, self.folders, strict=True)
        return {f"checkpoint {i} ({name})": folder_digest(each) for i, (name, each) in enumerate(pairs, 1)}


def first_order(scorers: Sequence[Scorer]) -> list[GradientScorer]:
    """Return the scorers that are summed over checkpoints: TracIn in any form.

    Raises:
        ValueError: the name of a sum is that of another scorer.
    """
    chosen = [scorer for scorer in gradient_scorers(scorers) if scorer.first_order]
    taken = {scorer.name for scorer in scorers} & {scorer.name + SUFFIX for scorer in chosen}
    if taken:
        raise ValueError(f"a scorer is called {min(taken)!r}, as the sum over checkpoints is; give it another name")
    return chosen


def score_checkpoints(
    checkpoints: Checkpoints,
    subject: Subject,
    scored: Scored | None,
    score: Callable[[Sequence[GradientScorer], Path], Scored | None],
    folder: Path,
) -> Scored | None:
    """Score the pool at every checkpoint and add the columns of their sum to `scored`; leaves the last in the subject.

    `score` scores the pool with some scorers into a folder, with the model as it is then.

    Returns:
        `scored` with more columns, or None as long as other jobs' chunks are not there.
    """
    if not checkpoints.names:
        return scored
    found = []
    for number, (name, place) in enumerate(zip(checkpoints.names, checkpoints.folders, strict=True), 1):
        if processes.is_main():
            print(f"checkpoint {number} of {len(checkpoints.names)}: {name}")
        subject.load_trained(place)
        out = folder / "checkpoints" / str(number)
        out.mkdir(parents=True, exist_ok=True)
        try:
            found.append(score(checkpoints.scorers, out))
        except ValueError as problem:
            raise ValueError(f"checkpoint {name}: {problem}") from None
    done = [one for one in found if one is not None]
    if scored is None or len(done) < len(found):
        return None
    lost = {
        uid: f"checkpoint {name}: {why}"
        for name, one in zip(checkpoints.names, done, strict=True)
        for uid, why in one.left_out.items()
    }
    if processes.is_main():  # say which samples have scores but no sum
        lost = {uid: why for uid, why in lost.items() if uid not in scored.left_out}
        source = f"the sum over the checkpoints ({SUFFIX})"
        runs.report_left_out(folder / "checkpoints" / "not_finite.json", lost, len(scored.uids), source)
    return add_checkpoints(scored, done, checkpoints.rates)


def add_checkpoints(scored: Scored, found: Sequence[Scored], rates: Sequence[float]) -> Scored:
    """Add the columns of the sums over checkpoints, `<name>.CP`, NaN for samples that lack a score at any of them.

    Args:
        scored: what the columns are added to, and whose samples they are for.
        found: the scores at each checkpoint, of the same columns.
        rates: the learning rate at each.

    Raises:
        ValueError: the numbers of checkpoints and rates differ, or the checkpoints' samples or columns do.

    >>> def at(*scores):
    ...     names = (("TracIn", "gqa"),)
    ...     return Scored(torch.tensor([4, 7]), torch.zeros(2), torch.tensor([scores]), names, {}, {})
    >>> both = add_checkpoints(at(0.0, 0.0), [at(1.0, 2.0), at(3.0, float("nan"))], [1.0, 0.5])
    >>> both.names[1], both.scores[1].tolist()
    (('TracIn.CP', 'gqa'), [2.5, nan])
    """
    if not found or len(found) != len(rates):
        raise ValueError(f"expected a learning rate for each checkpoint, got {len(rates)} for {len(found)} checkpoints")
    names = found[0].names
    if any(one.names != names for one in found):
        raise ValueError(f"the checkpoints' columns differ; the first has {', '.join('/'.join(n) for n in names)}")
    total = sum(rate * _of_samples(one, scored.uids) for rate, one in zip(rates, found, strict=True))
    added = [(name + SUFFIX, target) for name, target in names]
    about = {name + SUFFIX: {"learning_rates": list(rates)} for name, _ in names}
    return scored.with_columns(torch.as_tensor(total), added, about)


def _of_samples(scored: Scored, uids: Tensor) -> Tensor:
    """Return the scores of samples in the order of `uids`. [columns, n]"""
    rows = {uid: row for row, uid in enumerate(scored.uids.tolist())}
    missing = [uid for uid in uids.tolist() if uid not in rows]
    if missing or len(rows) != len(uids):
        first = f"{len(missing)} are missing, the first: {missing[0]}" if missing else "some are new"
        raise ValueError(f"a checkpoint has scores of {len(rows)} samples, the pool of {len(uids)}; {first}")
    return scored.scores[:, [rows[uid] for uid in uids.tolist()]]
