"""One seed of `vlmsel detect`: fine-tune the classifier, score its training samples, measure what the scores find.

`seed<k>/` gets `model/` (trained weights), what `score_pool` leaves, `scores.parquet`, `labels.csv` and, last,
`metrics.json`; what is there is not done again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlmsel import runs
from vlmsel.data.batches import length_batches
from vlmsel.data.labelled import label_of
from vlmsel.data.labelled_sets import LabelledData
from vlmsel.data.sample import Sample
from vlmsel.data.text_batches import TextCollator, TextDataset, encode_texts
from vlmsel.evaluation.engines.huggingface import set_padding, text_limit
from vlmsel.gradients import select_blocks
from vlmsel.models.classifier import (
    Classifier,
    Tune,
    adapt,
    default_blocks,
    describe,
    load_classifier,
    load_trained,
    no_rows,
    predict,
    sample_losses,
    save_trained,
)
from vlmsel.models.config import LoraSpec
from vlmsel.models.fingerprints import fingerprint
from vlmsel.scorers import Exact, Scorer
from vlmsel.scoring.batches import BatchPlan, seeded_part
from vlmsel.scoring.curvature import Pass, Streams
from vlmsel.scoring.halving import Budget
from vlmsel.scoring.pool_pass import Scored, score_pool
from vlmsel.scoring.score_pass import Bad, Objective
from vlmsel.scoring.table import write_table
from vlmsel.studies.detection import (
    LABELS,
    METRICS,
    POINTS,
    SCORES,
    TARGET,
    accuracy,
    agreement,
    detection_metrics,
    detection_rate,
)
from vlmsel.studies.labelled_data import Drawn, write_labels
from vlmsel.training.classifier import FineTuning, fine_tune

OBJECTIVE = Objective(sample_losses, no_rows)


@dataclass(frozen=True)
class Recipe:
    """How a seed's model is made and scored."""

    model: str
    tune: Tune
    lora: LoraSpec
    training: FineTuning
    scorers: tuple[Scorer, ...]
    blocks: str | None
    fresh_head: bool
    max_length: int | None
    batch_tokens: int
    scale_samples: int | None
    device: torch.device


@dataclass(frozen=True)
class Texts:
    """A seed's samples as the model reads them, and how batches of them are made."""

    train: TextDataset
    validation: TextDataset
    collate: TextCollator

    def plan(self, data: TextDataset, recipe: Recipe, positions: Sequence[int] | None = None) -> BatchPlan:
        """Put samples of like length into one batch; all of them when `positions` is left out."""
        chosen = list(range(len(data))) if positions is None else list(positions)
        lengths = data.lengths()
        groups = length_batches([lengths[i] for i in chosen], max_tokens=recipe.batch_tokens)
        return BatchPlan(data, self.collate, [[chosen[i] for i in group] for group in groups], recipe.device)


def run_seed(recipe: Recipe, data: LabelledData, drawn: Drawn, seed: int, here: Path, config: str) -> dict[str, Any]:
    """Do a seed, or what of it is left, and return its metrics.

    Raises:
        ValueError: the model or a sample cannot be used, or `here` holds parts of another run.
    """
    if (here / METRICS).is_file():
        return runs.read_json(here / METRICS)
    start = time.perf_counter()
    classifier = load_classifier(recipe.model, data.classes, seed, recipe.fresh_head)
    require_same(here.parent, {"the model": fingerprint(classifier.model.base_model)})
    texts = _encode(classifier, drawn, recipe, data.classes)
    model = adapt(classifier, recipe.tune, recipe.lora, seed).to(recipe.device)
    blocks = select_blocks(model, recipe.blocks or default_blocks(recipe.tune, classifier.head))
    about = load_trained(model, here / "model") or _train(model, texts, recipe, data, seed, here)
    tuned = time.perf_counter()
    fit = list(range(len(texts.train)))
    train, validation = texts.plan(texts.train, recipe), texts.plan(texts.validation, recipe)
    scale = texts.plan(texts.train, recipe, seeded_part(fit, recipe.scale_samples, seed + 1))
    learnt = accuracy(*_answers(model, validation))
    print(
        f"seed {seed}: validation accuracy {_percent(learnt['accuracy'])} (the largest class has "
        f"{_percent(learnt['majority'])}){_warning(learnt)}",
        flush=True,
    )
    job = Pass(model, OBJECTIVE, blocks, Bad(), Budget())
    scored = score_pool(job, train, Streams(train, scale, {TARGET: validation}), _seeded(recipe.scorers, seed), here)
    assert scored is not None  # one process
    if job.bad.reasons:
        _report(job.bad, here, data)
    write_labels(here / LABELS, drawn)
    _write_scores(here, scored, texts, drawn, data, config)
    metrics = {
        "seed": seed,
        "train": len(drawn.train),
        "validation": len(drawn.validation),
        "wrong": None if drawn.wrong is None else sum(drawn.wrong),
        "cut": {"train": texts.train.cut, "validation": texts.validation.cut},
        "not_scored": len(job.bad.reasons),
        **learnt,
        **_measure(scored, drawn, recipe.scorers),
        "seconds": {
            "fine-tuning": about["seconds"],
            "scoring": time.perf_counter() - tuned,
            "all": time.perf_counter() - start,
        },
    }
    runs.write_json(here / METRICS, metrics)
    return metrics


def require_same(folder: Path, inputs: Mapping[str, str]) -> None:
    """Refuse to go on from other data or another model under the same names.

    Raises:
        ValueError: something changed since the run's first seed began.
    """
    path = folder / "inputs.json"
    earlier = runs.read_json(path) if path.is_file() else {}
    changed = [name for name, value in inputs.items() if earlier.get(name, value) != value]
    if changed and any(folder.glob("seed*/model")):
        raise ValueError(f"{folder}: {changed[0]} changed since this run began; choose another --out or delete it")
    runs.write_json(path, {**earlier, **inputs})


def _encode(classifier: Classifier, drawn: Drawn, recipe: Recipe, classes: Sequence[str]) -> Texts:
    """Tokenise a seed's samples and say how many were cut."""
    model, tokenizer = classifier.model, classifier.tokenizer
    set_padding(tokenizer)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id  # classifiers on causal models look for the last token
    limit = min(text_limit(model, tokenizer), recipe.max_length or 1 << 30)

    def encoded(samples: Sequence[Sample]) -> TextDataset:
        labels = [classes.index(label_of(sample)) for sample in samples]
        return encode_texts(tokenizer, [s.uid for s in samples], [s.said("human") for s in samples], labels, limit)

    train, validation = encoded(drawn.train), encoded(drawn.validation)
    for name, data in (("training", train), ("validation", validation)):
        if data.cut:
            print(f"{data.cut} of {len(data)} {name} samples were cut to {limit} tokens")
    return Texts(train, validation, TextCollator(tokenizer.pad_token_id))


def _train(model: Any, texts: Texts, recipe: Recipe, data: LabelledData, seed: int, here: Path) -> dict[str, Any]:
    start = time.perf_counter()
    rate = recipe.training.rate(recipe.tune)
    losses = fine_tune(model, texts.train, texts.collate, recipe.training, rate, seed)
    about = describe(recipe.model, recipe.tune, recipe.lora, data.classes)
    about |= {"seed": seed, "losses": losses, "seconds": time.perf_counter() - start}
    save_trained(model, here / "model", about)
    return about


def _answers(model: Any, plan: BatchPlan) -> tuple[list[int], list[int]]:
    """Return predictions and labels."""
    pairs = [(predict(model, batch).tolist(), batch.labels.tolist()) for batch in plan.shown("validation")]
    return [p for own, _ in pairs for p in own], [label for _, own in pairs for label in own]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _warning(learnt: Mapping[str, float]) -> str:
    if learnt["accuracy"] > learnt["majority"]:
        return ""
    return (
        "; the model tells the classes no better apart than a constant answer: tune it longer or take a better encoder"
    )


def _seeded(scorers: Sequence[Scorer], seed: int) -> list[Scorer]:
    """Let random scores differ from seed to seed."""
    return [
        replace(scorer, seed=scorer.seed + seed)  # type: ignore[type-var, attr-defined]
        if not scorer.uses_gradients and is_dataclass(scorer) and hasattr(scorer, "seed")
        else scorer
        for scorer in scorers
    ]


def _report(bad: Bad, here: Path, data: LabelledData) -> None:
    path = here / "skipped.json"
    listed = [{"uid": uid, "reason": reason} for uid, reason in sorted(bad.reasons.items())]
    runs.write_json(path, listed)
    first = f"sample {listed[0]['uid']}: {listed[0]['reason']}"
    print(f"{data.train.name}: {len(listed)} samples could not be scored, listed in {path} (the first: {first})")


def _write_scores(here: Path, scored: Scored, texts: Texts, drawn: Drawn, data: LabelledData, config: str) -> None:
    """Write the score table: a row per record of the training file, null where it was not drawn or scored."""
    row_of = {uid: row for row, uid in enumerate(scored.uids.tolist())}
    order = [row_of.get(uid, -1) for uid in range(data.train.total)]
    given = {sample.uid: sample.source for sample in drawn.train}
    tokens = dict(zip((item.uid for item in texts.train.items), texts.train.lengths(), strict=True))

    def column(values: torch.Tensor) -> list[float]:
        listed = [*values.tolist(), math.nan]  # row -1
        return [listed[row] for row in order]

    columns: dict[str, Sequence[Any]] = {
        "uid": range(data.train.total),
        "source": [given.get(uid, "") for uid in range(data.train.total)],
        "tokens": [tokens.get(uid, 0) for uid in range(data.train.total)],
        "loss": column(scored.losses),
    }
    columns |= {f"{s}/{t}": column(one) for (s, t), one in zip(scored.names, scored.scores, strict=True)}
    about = {"pool": data.train.name, "pool_sha256": data.digests()["the training data"], "config": config}
    write_table(here / SCORES, columns, {**about, "environment": runs.environment(), "details": scored.details})


def _measure(scored: Scored, drawn: Drawn, scorers: Sequence[Scorer]) -> dict[str, Any]:
    """Measure each scorer: what it finds where wrong labels are known, and how it agrees with an exact one."""
    values = {scorer: one.double().numpy() for (scorer, _), one in zip(scored.names, scored.scores, strict=True)}
    keep = np.isfinite(next(iter(values.values())))
    wrong = None if drawn.wrong is None else dict(zip((s.uid for s in drawn.train), drawn.wrong, strict=True))
    bad = None if wrong is None else np.array([wrong[uid] for uid in scored.uids.tolist()])[keep]
    found: dict[str, Any] = {"detection": {}, "curves": {}, "agreement": {}}
    exact = next((scorer.name for scorer in scorers if isinstance(scorer, Exact)), None)
    points = np.linspace(0, 1, POINTS)
    for scorer in (one.name for one in scorers):
        own = values[scorer][keep]
        if bad is not None and 0 < bad.sum() < len(bad):
            found["detection"][scorer] = detection_metrics(own, bad)
            found["curves"][scorer] = detection_rate(own, bad, points).round(6).tolist()
        if exact is not None:
            both = agreement(own, values[exact][keep])
            found["agreement"][scorer] = {name: None if math.isnan(value) else value for name, value in both.items()}
    return found
