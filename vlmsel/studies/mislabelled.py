"""The study of `vlmsel detect`: fine-tune a classifier on labels as given, score its training samples by their
influence on clean validation samples, and measure what the scores find.

`seed<k>/` gets `model/` and `phase.json` (the training), what the passes over a pool leave, `scores.parquet`,
`labels.csv`, `likely.csv` (the class that the model takes a sample for when the given one is ruled out) and, last,
`metrics.json`; what is there is not done again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from vlmsel import runs
from vlmsel.data.dataset import Reading, SampleDataset
from vlmsel.models.classifier import Classifier, Tune
from vlmsel.models.classifier_files import open_classifier
from vlmsel.models.config import LoraSpec
from vlmsel.models.fingerprints import fingerprint
from vlmsel.scorers import Exact, Scorer
from vlmsel.scorers.base import SampleScorer
from vlmsel.scoring.batches import Batching, BatchPlan
from vlmsel.scoring.first_batch import Check, check_first_batch, tell_left_out
from vlmsel.scoring.passes import FitPart, Passes
from vlmsel.scoring.pool_pass import Scored
from vlmsel.scoring.pool_table import records_of, write_scores
from vlmsel.studies import detection
from vlmsel.studies.labelled_data import Drawn, LabelledData, write_labels
from vlmsel.studies.study import Seed, Study
from vlmsel.training.fine_tuning import FineTuning
from vlmsel.training.trainer import train_phase

ARM = "labels as given"  # the one way that a seed's model is made


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
    check: Check
    device: torch.device


@dataclass(frozen=True)
class Tuned:
    """A seed's classifier and its samples as it reads them; when that was begun, and what the training took."""

    classifier: Classifier
    train: SampleDataset
    validation: SampleDataset
    begun: float
    seconds: float


@dataclass(frozen=True)
class Mislabelled(Study[Drawn, Tuned, dict[str, Any]]):
    """Every seed draws subsets and flips, and its answer is `metrics.json`."""

    recipe: Recipe
    data: LabelledData
    drawn: Sequence[Drawn]
    config: str

    def kept(self, seed: Seed, arm: str) -> dict[str, Any] | None:
        path = seed.folder / detection.METRICS
        return runs.read_json(path) if path.is_file() else None

    def subset(self, seed: Seed, arm: str) -> Drawn:
        return self.drawn[seed.number]

    def tune(self, seed: Seed, arm: str, data: Drawn) -> Tuned:
        recipe, begun = self.recipe, time.perf_counter()
        classifier = open_classifier(recipe.model, self.data.classes, seed.number, recipe.fresh_head)
        weights = {"the model": fingerprint(classifier.backbone.base_model.state_dict())}
        runs.same_inputs(seed.folder.parent, weights, more=True)
        reading = Reading(max_length=min(recipe.max_length or classifier.limit, classifier.limit))
        train, validation = (SampleDataset(own, classifier, reading) for own in (data.train, data.validation))
        for name, part in (("training", train), ("validation", validation)):
            if count := _cut(part):
                print(f"{count} of {len(part)} {name} samples were cut to {reading.max_length} tokens")
        classifier.adapt(recipe.tune, recipe.lora, seed.number)
        classifier.to(recipe.device)
        classifier.blocks(recipe.blocks)  # a mistake in their names costs no training
        phase = recipe.training.phase(recipe.tune, seed.number)
        return Tuned(classifier, train, validation, begun, train_phase(classifier, train, phase, seed.folder).seconds)

    def ask(self, seed: Seed, arm: str, model: Tuned) -> dict[str, Any]:
        recipe, drawn, start = self.recipe, self.drawn[seed.number], time.perf_counter()
        blocks, part = model.classifier.blocks(recipe.blocks), FitPart(scale=recipe.scale_samples, seed=seed.number)
        targets, batching = {detection.TARGET: model.validation}, Batching(recipe.batch_tokens)
        passes = Passes.of(model.classifier, blocks, model.train, targets, batching, part)
        tell_left_out(model.classifier, recipe.blocks, blocks)
        check_first_batch(model.classifier, blocks, model.train, batching, recipe.check)
        learnt = _accuracy(model.classifier, passes.goal.plan)
        print(f"seed {seed.number}: {_told(learnt)}", flush=True)
        scored = passes.score(_seeded(recipe.scorers, seed.number), seed.folder)
        assert scored is not None  # one process
        train = self.data.train
        runs.report_left_out(seed.folder / "skipped.json", scored.left_out, train.total, train.name)
        write_labels(seed.folder / detection.LABELS, drawn)
        likely = _likely(model.classifier, passes.pool.plan)
        runs.write_csv(seed.folder / detection.LIKELY, [("uid", "likely_label"), *likely])
        about = {"pool": train.name, "pool_sha256": self.data.digests()["the training data"], "config": self.config}
        write_scores(seed.folder / detection.SCORES, records_of(model.train, {}, train.total), scored, about)
        metrics = {
            "seed": seed.number,
            "train": len(drawn.train),
            "validation": len(drawn.validation),
            "wrong": None if drawn.wrong is None else sum(drawn.wrong),
            "cut": {"train": _cut(model.train), "validation": _cut(model.validation)},
            "not_scored": len(scored.left_out),
            **learnt,
            **_measure(scored, drawn, recipe.scorers),
            "seconds": {
                "fine-tuning": model.seconds,
                "scoring": time.perf_counter() - start,
                "all": time.perf_counter() - model.begun,
            },
        }
        runs.write_json(seed.folder / detection.METRICS, metrics)
        return metrics


def _cut(data: SampleDataset) -> int:
    """Count the samples that are longer than the model takes."""
    return sum(data[position].cut for position in range(len(data)))


def _accuracy(classifier: Classifier, plan: BatchPlan) -> dict[str, float]:
    """Return the classifier's accuracy on the samples of a plan."""
    pairs = [(classifier.predict(batch).tolist(), batch.labels.tolist()) for batch in plan.batches()]
    return detection.accuracy([p for own, _ in pairs for p in own], [label for _, own in pairs for label in own])


@torch.no_grad()
def _likely(classifier: Classifier, plan: BatchPlan) -> list[tuple[int, str]]:
    """Return the most probable class of each sample other than the given one, by uid."""
    found: list[tuple[int, str]] = []
    for batch in plan.batches():
        ruled_out = classifier.logits(batch).scatter(1, batch.labels[:, None], -math.inf)
        found += zip(
            batch.uids.tolist(), (classifier.classes[i] for i in ruled_out.argmax(dim=1).tolist()), strict=True
        )
    return sorted(found)


def _told(learnt: Mapping[str, float]) -> str:
    shares = {name: f"{100 * share:.1f} %" for name, share in learnt.items()}
    text = f"validation accuracy {shares['accuracy']} (the largest class has {shares['majority']})"
    if learnt["accuracy"] > learnt["majority"]:
        return text
    mend = "tune it longer or take a better encoder"
    return f"{text}; the model tells the classes no better apart than a constant answer: {mend}"


def _seeded(scorers: Sequence[Scorer], seed: int) -> list[Scorer]:
    """Let random scores differ from seed to seed."""
    return [
        replace(one, seed=one.seed + seed) if isinstance(one, SampleScorer) and hasattr(one, "seed") else one  # type: ignore[type-var]
        for one in scorers
    ]


def _measure(scored: Scored, drawn: Drawn, scorers: Sequence[Scorer]) -> dict[str, Any]:
    """Measure each scorer: what it finds where wrong labels are known, and how it agrees with an exact one."""
    scores = scored.scores.double().numpy()
    keep = np.isfinite(scores[0])
    own = {scorer: one[keep] for (scorer, _), one in zip(scored.names, scores, strict=True)}
    values = {scorer.name: own[scorer.name] for scorer in scorers}
    found: dict[str, Any] = {"detection": {}, "curves": {}, "agreement": {}}
    exact = next((scorer.name for scorer in scorers if isinstance(scorer, Exact)), None)
    if drawn.wrong is not None:
        wrong = dict(zip((sample.uid for sample in drawn.train), drawn.wrong, strict=True))
        bad = np.array([wrong[uid] for uid in scored.uids.tolist()])[keep]
        if 0 < bad.sum() < len(bad):
            found |= detection.measured(values, bad)
    if exact is not None:
        for name, one in values.items():
            both = detection.agreement(one, values[exact])
            found["agreement"][name] = {key: None if math.isnan(value) else value for key, value in both.items()}
    return found
