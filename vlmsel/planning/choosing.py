"""What `vlmsel choose` will do, said before it does: the files at a glance, the steps, and what each costs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from vlmsel.data.first_look import tell
from vlmsel.data.formats import read_samples
from vlmsel.scorers import GradientScorer, Scorer
from vlmsel.scorers.base import FeatureScorer
from vlmsel.scorers.load import file_digest
from vlmsel.selection import Ask
from vlmsel.training.moments import NAME as MOMENTS
from vlmsel.training.phases import PhaseSettings
from vlmsel.training.warmup import LEAST, part_size


def check_scorer(scorer: Scorer, out: Path, warmup: PhaseSettings | None) -> None:
    """Refuse a scorer by which single target samples cannot choose, or whose files neither are there nor come of the
    warm-up (None for none) in `out`.

    Raises:
        ValueError: says which, and the mend.
    """
    left = os.path.abspath(out / "warmup" / MOMENTS)
    for what, path in scorer.files.items():
        if os.path.abspath(path) != left:
            file_digest(what, path)
        elif warmup is None or not warmup.moments:
            raise ValueError(f"{path}: {what} are left there by a warm-up with --settings.moments true; add it")
    if not isinstance(scorer, GradientScorer | FeatureScorer):
        raise ValueError(
            f"--scorer {scorer.name}: target samples choose by gradients or vectors, and this scorer has neither; "
            f"`vlmsel select --scorer {scorer.name}` needs no warm-up"
        )


def tell_choice(
    pool: str,
    files: Mapping[str, str],
    against: str | Sequence[str] | None,
    warmup: float,
    settings: PhaseSettings,
    ask: Ask,
    scorer: Scorer,
) -> None:
    """Read all files, and print what they hold and what will be done.

    Raises:
        ValueError: a file cannot be read, or the pool cannot give what is asked for.
    """
    listed, wanted = read_samples(pool).samples, {name: read_samples(file).samples for name, file in files.items()}
    ask.check(len(listed.records), listed.names)
    goals = ", ".join(f"{name} {len(own)}" for name, own in wanted.items())
    print(
        f"{pool}: {len(listed)} samples; targets: {goals}\n"
        f"plan: {_tuning(len(listed), warmup, settings)}, {_cost(scorer)}"
    )
    tell(pool, listed, wanted, against)


def _tuning(samples: int, warmup: float, settings: PhaseSettings) -> str:
    if not warmup:
        return "no warm-up"
    steps = f"epochs: {settings.epochs:g}" if settings.max_steps is None else f"steps: {settings.max_steps}"
    return f"tuning on {part_size(samples, warmup, LEAST)} of them ({steps})"


def _cost(scorer: Scorer) -> str:
    if isinstance(scorer, GradientScorer):
        return (
            "a curvature pass over the fit samples where the scorer has curvature, four passes over the targets and "
            "one over the pool; each costs about a forward and backward of its samples"
        )
    return "one look at every target and sample of the pool, a forward of the model at most"
