"""What the way from a pool to an evaluated model will take: operations, hours, memory by part, disk.

Only arithmetic: costs.py has the formulas, hardware.py the cards, `Given` what is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlmsel.models.counts import Counts
from vlmsel.planning import costs
from vlmsel.planning.costs import Amount
from vlmsel.planning.hardware import GB, Card
from vlmsel.scorers import GradientScorer
from vlmsel.scorers.statistics import Gram
from vlmsel.scoring.memory import Memory
from vlmsel.scoring.memory_plan import Plan, known_blocks, plan_curvature
from vlmsel.training.phases import PhaseSettings

ANSWER = 10  # tokens of an answer
HOST, DISK = 128 * GB, 1000 * GB  # assumed beside a card
WIDTHS = {"float32": 4.0, "bfloat16": 2.0, "8bit": 1.0, "4bit": 0.5}  # bytes of a weight
USED = 0.9  # of a card's memory
NIGHT = 8.0  # hours that scoring should take at most, by which processes are suggested
PART = 0.15  # of the score pass that the curvature pass should cost at most


@dataclass(frozen=True)
class Given:
    """What is planned.

    Attributes:
        scored, tuned: the model with what is looked at, and with what learns.
        blocks: name -> (rows, cols) of what is looked at.
        pool, targets: what is read, targets over all files.
        files: number of target files.
        scorers: those that look at gradients.
        warmup, fraction: parts of the pool, in samples; `fit` samples of curvature.
        columns: the most virtual targets, and bytes of an entry of theirs (`column_bytes`).
        questions: of the evaluation.
        settings: of warm-up and tuning.
        dtype: of the backbones.
        batch_tokens: of a scoring pass.
        longest: tokens of the longest sample.
    """

    scored: Counts
    tuned: Counts
    blocks: dict[str, tuple[int, int]]
    pool: Amount
    targets: Amount
    files: int
    scorers: Sequence[GradientScorer]
    warmup: int
    chosen: int
    fit: int
    columns: int
    questions: int
    settings: PhaseSettings
    dtype: str
    batch_tokens: int
    longest: int
    column_bytes: int = 4

    @property
    def virtual(self) -> int:
        """How many columns stand for target samples."""
        return min(self.columns, int(self.targets.samples))

    def part(self, samples: float) -> Amount:
        """Return so many samples of the pool."""
        return self.pool.times(samples / self.pool.samples)


@dataclass(frozen=True)
class Step:
    """One step: samples and tokens that pass through the model, operations, hours."""

    name: str
    samples: float
    tokens: float
    operations: float
    hours: float


def steps(given: Given, card: Card, utilisation: float) -> list[Step]:
    """Return the steps in their order."""
    rate = card.rate(given.dtype) * utilisation
    trained = card.rate("float32" if given.settings.precision == "float32" else "bfloat16") * utilisation
    known = [_tuning("warm-up", given, given.warmup, trained)] if given.warmup else []
    return [*known, *_scoring(given, card, rate, utilisation), _tuning("tuning", given, given.chosen, trained),
            _evaluation(given, card, rate)]  # fmt: skip


def _tuning(name: str, given: Given, samples: int, rate: float) -> Step:
    settings = given.settings
    wanted = settings.epochs * samples
    read = given.part(wanted if settings.max_steps is None else settings.max_steps * settings.batch_size)
    operations = costs.training(given.tuned, read, settings.gradient_checkpointing)
    return Step(name, read.samples, read.tokens, operations, operations / rate / 3600)


def _scoring(given: Given, card: Card, rate: float, utilisation: float) -> list[Step]:
    pure = given.targets.times(costs.TARGET_PASSES)
    fit, pool = given.part(given.fit), given.pool
    passes = [("targets", pure, 1.0), ("curvature", fit, costs.CURVATURE_PASS), ("score pass", pool, costs.SCORE_PASS)]
    found = []
    for name, read, factor in passes:
        plain = costs.training(given.scored, read)
        found.append(Step(name, read.samples, read.tokens, plain, factor * plain / rate / 3600))
    if sides := gram_sides(given):
        work = costs.inversion(sides)
        found.insert(2, Step("solution", 0, 0, work, work / (card.float32 * utilisation) / 3600))
    return found


def gram_sides(given: Given) -> list[int]:
    """Return the sides of the matrices that scorers invert."""
    known = known_blocks(given.blocks, 1)
    found = [(scorer, scorer.statistic(block)) for scorer in given.scorers for block in known.values()]
    return [one.size for scorer, one in found if isinstance(one, Gram) and getattr(scorer, "solver", "") == "schulz"]


def _evaluation(given: Given, card: Card, rate: float) -> Step:
    asked = given.targets.times(given.questions / given.targets.samples)
    reading = costs.forward(given.tuned, asked)
    weights = costs.weight_bytes(given.tuned, WIDTHS[given.dtype])
    seconds = reading / rate + costs.decoding(weights, given.questions, 32, ANSWER, card.bandwidth)
    return Step("evaluation", given.questions, asked.tokens + ANSWER * given.questions, reading, seconds / 3600)


# Memory


def scoring_memory(given: Given, card: Card) -> tuple[dict[str, float], Plan | str]:
    """Return the bytes of the scoring passes by part on the card, and where curvature lies, or why nowhere and what
    would fit."""
    width = WIDTHS[given.dtype]
    found = {
        "weights": costs.weight_bytes(given.scored, width),
        "activations": costs.activation_bytes(given.scored, given.batch_tokens, max(width, 2.0)),
        "logits": costs.logit_bytes(given.scored, _supervised(given) * given.batch_tokens),
    }
    try:
        plan = plan_curvature(**_curvature(given, card, sum(found.values())))
    except ValueError as problem:
        return found, str(problem)
    held = plan.gathered if plan.place == "device" else 0
    return found | {"targets and solving": plan.needs["device"] - held, "curvature": float(held)}, plan


def _curvature(given: Given, card: Card, taken: float) -> dict[str, Any]:
    """Return what the place of curvature depends on, where so many bytes of the card are taken."""
    free, same = max(0, int(card.memory - taken)), card.name == "CPU"
    memory = Memory(free, free if same else HOST, DISK, same)
    return {
        "scorers": given.scorers, "blocks": given.blocks, "targets": given.files + given.virtual,
        "fit_samples": given.fit, "memory": memory, "norms": given.columns > 0,
    }  # fmt: skip


def training_memory(given: Given) -> dict[str, float]:
    """Return the bytes of training by part, with the micro-batches that the settings make."""
    settings, model = given.settings, given.tuned
    samples = settings.batch_size / settings.gradient_accumulation
    tokens, width = samples * given.pool.tokens / given.pool.samples, 2 if settings.precision == "bfloat16" else 4
    return {
        "weights": costs.weight_bytes(model, WIDTHS[given.dtype]),
        "gradients": costs.gradient_bytes(model),
        "optimiser": costs.optimiser_bytes(model),
        "activations": costs.activation_bytes(model, tokens, width, settings.gradient_checkpointing),
        "logits": costs.logit_bytes(model, _supervised(given) * tokens),
    }


def _supervised(given: Given) -> float:
    """Return the share of tokens that the loss is taken on."""
    return given.pool.supervised / given.pool.tokens


def disk(given: Given) -> dict[str, int]:
    """Return the bytes of what is written."""
    samples, targets = int(given.pool.samples), int(given.targets.samples)
    own = any(scorer.own_norm for scorer in given.scorers)
    model = 4 * given.tuned.formed
    return {
        "affinities": costs.affinity_bytes(samples, targets, given.virtual, len(given.scorers), own, given.column_bytes)
        if given.columns
        else 0,
        "scores": costs.table_bytes(samples, given.files * len(given.scorers)),
        "models": (2 if given.warmup else 1) * model,
        "states while training": model + int(costs.optimiser_bytes(given.tuned)),
    }


# Suggestions


def suggested(given: Given, card: Card, utilisation: float) -> dict[str, int | None]:
    """Suggest settings for a card: columns first, then the greatest batches, then fit samples; None where nothing fits.

    Processes are as many cards as score the pool within `NIGHT` hours.
    """
    found: dict[str, int | None] = dict.fromkeys(("batch_tokens", "columns", "fit_samples", "processes"))
    least = max(1024, 1 << math.ceil(math.log2(max(given.longest, 2))))
    batches = [1 << power for power in range(15, 9, -1) if 1 << power >= least] or [least]
    columns = sorted({min(size, max(1, int(given.targets.samples))) for size in (128, 64, 32, 16, 8)}, reverse=True)
    light = replace(given, fit=min(given.fit, 200))
    pairs = ((size, width) for width in columns for size in batches)
    fitting = (pair for pair in pairs if _fits(replace(light, batch_tokens=pair[0], columns=pair[1]), card))
    if (pair := next(fitting, None)) is None:
        return found
    given = replace(given, batch_tokens=pair[0], columns=pair[1])
    most = PART * given.pool.samples * costs.SCORE_PASS / costs.CURVATURE_PASS
    fits = [size for size in (20000, 10000, 5000, 2000, 1000, 500) if size <= most]
    fit = next((size for size in fits if _fits(replace(given, fit=size), card)), min(200, int(given.pool.samples)))
    taken = steps(replace(given, fit=fit), card, utilisation)
    hours = sum(step.hours for step in taken if step.name in SCORING)
    needed = max(1, math.ceil(hours / NIGHT))
    return {"batch_tokens": pair[0], "columns": pair[1], "fit_samples": fit, "processes": needed}


def _fits(given: Given, card: Card) -> bool:
    parts, plan = scoring_memory(given, card)
    return isinstance(plan, Plan) and parts["weights"] + parts["activations"] + parts["logits"] <= USED * card.memory


SCORING = ("targets", "curvature", "solution", "score pass")
