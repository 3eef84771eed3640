"""A plan as `vlmsel plan` prints it: a model on the device `meta`, the lengths of its files, and what comes of both."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from vlmsel.data.dataset import Reading
from vlmsel.models.config import LoraSpec
from vlmsel.models.counts import Counts, count
from vlmsel.models.outline import outline
from vlmsel.models.subject import Subject
from vlmsel.planning import forecast, lengths
from vlmsel.planning.costs import Amount
from vlmsel.planning.forecast import Given
from vlmsel.planning.hardware import Card
from vlmsel.scorers import GradientScorer
from vlmsel.training.phases import PhaseSettings
from vlmsel.training.warmup import LEAST, part_size


@dataclass(frozen=True)
class Wanted:
    """What `vlmsel plan` is asked; see its options. `columns` is 0 where target samples do not count one by one."""

    model: str
    pool: str | None
    samples: int | None
    tokens: int | None
    targets: dict[str, str]
    target_samples: int
    scorers: tuple[GradientScorer, ...]
    warmup: float
    fraction: float
    questions: int
    settings: PhaseSettings
    lora: LoraSpec | None
    blocks: str | None
    dtype: str
    reading: Reading
    columns: int
    column_bytes: int
    batch_tokens: int
    fit: int


def plan_of(wanted: Wanted, card: Card, utilisation: float) -> dict[str, Any]:
    """Return the plan as what JSON can hold.

    Raises:
        FileNotFoundError, ValueError: model, pool or targets cannot be read, or it is not said how much there is.
    """
    if wanted.dtype not in forecast.WIDTHS:
        raise ValueError(f"dtype is {wanted.dtype!r}; expected one of {', '.join(forecast.WIDTHS)}")
    if (wanted.pool is None) == (wanted.samples is None or wanted.tokens is None):
        raise ValueError("say how much there is: --pool FILE, or --samples N and --tokens T without one")
    subject = outline(wanted.model, torch.float32 if wanted.dtype == "float32" else torch.bfloat16)
    if wanted.lora is not None:
        with torch.device("meta"):
            subject.attach_lora(wanted.lora, 0, wanted.model)
    looked = subject.blocks(wanted.blocks)
    scored = count(subject, {block.name for block in looked})
    pool = _pool(subject, scored, wanted)
    goals, how = _targets(subject, scored, wanted, pool)
    learning = {name for group in subject.trained(wanted.settings.train).values() for name in group}
    given = Given(
        scored=scored, tuned=count(subject, learning), blocks={b.name: (b.rows, b.cols) for b in looked},
        pool=pool.amount, targets=goals, files=max(1, len(wanted.targets)), scorers=wanted.scorers,
        warmup=part_size(int(pool.amount.samples), wanted.warmup, LEAST) if wanted.warmup else 0,
        chosen=max(1, round(wanted.fraction * pool.amount.samples)), fit=min(wanted.fit, int(pool.amount.samples)),
        columns=wanted.columns, questions=wanted.questions, settings=wanted.settings, dtype=wanted.dtype,
        batch_tokens=wanted.batch_tokens, longest=pool.longest, column_bytes=wanted.column_bytes,
    )  # fmt: skip
    return _found(given, card, utilisation, wanted, [f"pool: {pool.how}", f"targets: {how}"])


def _pool(subject: Subject, counts: Counts, wanted: Wanted) -> lengths.Read:
    if wanted.pool is not None:
        return lengths.of_file(subject, counts, wanted.pool, wanted.reading)
    assert wanted.samples is not None and wanted.tokens is not None
    return lengths.even(wanted.samples, wanted.tokens, counts)


def _targets(subject: Subject, counts: Counts, wanted: Wanted, pool: lengths.Read) -> tuple[Amount, str]:
    if not wanted.targets:
        many = wanted.target_samples
        return pool.amount.times(many / pool.amount.samples), f"{many} samples, as long as the pool's"
    found = [lengths.of_file(subject, counts, file, wanted.reading) for file in wanted.targets.values()]
    pairs = zip(*(asdict(one.amount).values() for one in found), strict=True)
    return Amount(*map(sum, pairs)), found[0].how


def _found(given: Given, card: Card, utilisation: float, wanted: Wanted, known: list[str]) -> dict[str, Any]:
    taken = forecast.steps(given, card, utilisation)
    scoring, where = forecast.scoring_memory(given, card)
    curvature = where if isinstance(where, str) else where.describe()
    counts, settings = given.scored, given.settings
    return {
        "model": {"name": wanted.model, "parameters": sum(counts.entries.values()), "by part": dict(counts.entries),
                  "looked at": counts.formed, "learns": given.tuned.formed, "places of an image": counts.places},
        "card": asdict(card) | {"utilisation": utilisation},
        "pool": asdict(given.pool), "targets": asdict(given.targets), "dtype": given.dtype,
        "steps": [asdict(step) for step in taken],
        "hours": sum(step.hours for step in taken),
        "memory": {"scoring": scoring, "tuning": forecast.training_memory(given)},
        "curvature": curvature.removeprefix("curvature: "),
        "disk": forecast.disk(given),
        "suggested": forecast.suggested(given, card, utilisation),
        "assumed": [
            *known,
            f"{card.name}: {card.rate(given.dtype) / 1e12:g} TFLOP/s and {card.memory / 1e9:g} GB ({card.source}), of "
            f"the rate {utilisation:g} reached; host 128 GB, disk 1 TB",
            f"warm-up on {given.warmup:,}, curvature on {given.fit:,}, tuning on {given.chosen:,} samples, "
            f"{settings.epochs:g} epochs of {settings.train} in {settings.precision}; backbones {given.dtype}",
            f"answers of {forecast.ANSWER} tokens in batches of 32, questions as long as the targets; no padding; "
            "reading pictures hides behind the passes; loading models is not counted",
        ],
    }  # fmt: skip
