"""A classifier fine-tuned on some labelled texts in a folder: what it says of others, and how it scores them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from vlmsel import runs
from vlmsel.data.dataset import Reading, SampleDataset
from vlmsel.data.labelled import label_of
from vlmsel.data.sample import Sample
from vlmsel.models.classifier import Classifier, Tune
from vlmsel.models.classifier_files import open_classifier
from vlmsel.models.config import LoraSpec
from vlmsel.models.fingerprints import fingerprint
from vlmsel.scorers import Scorer
from vlmsel.scorers.base import SampleScorer
from vlmsel.scoring.aggregate import Aggregate
from vlmsel.scoring.batches import Batching
from vlmsel.scoring.first_batch import Check, check_first_batch, tell_left_out
from vlmsel.scoring.passes import FitPart, Passes
from vlmsel.scoring.pool_pass import Scored
from vlmsel.studies.detection import TARGET
from vlmsel.studies.out_of_fold import Judged
from vlmsel.training.fine_tuning import FineTuning
from vlmsel.training.trainer import train_phase


@dataclass(frozen=True)
class Recipe:
    """How a classifier is made and scores; `folds` are how many are made to judge labels out of fold, 0 for none;
    `aggregate` is how the scores of blocks are put together."""

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
    folds: int = 0
    aggregate: Aggregate = "sum"


@dataclass(frozen=True)
class Tuned:
    """A classifier, how it was made, the samples it was trained on, when that was begun, and what the training took."""

    classifier: Classifier
    recipe: Recipe
    train: SampleDataset
    begun: float
    seconds: float

    def read(self, samples: Sequence[Sample]) -> SampleDataset:
        """Return samples as the classifier reads them."""
        return SampleDataset(samples, self.classifier, self.train.reading)

    @torch.no_grad()
    def judge(self, samples: Sequence[Sample]) -> Judged:
        """Return how probable it takes every class of samples."""
        found: dict[int, list[float]] = {}
        for batch in Batching(self.recipe.batch_tokens).plan(self.classifier, self.read(samples)).batches():
            found |= zip(batch.uids.tolist(), self.classifier.logits(batch).double().softmax(1).tolist(), strict=True)
        uids, classes = [sample.uid for sample in samples], self.classifier.classes
        given = np.array([classes.index(label_of(sample)) for sample in samples])
        return Judged(uids, classes, given, np.array([found[uid] for uid in uids]))

    def score(self, targets: Sequence[Sample], seed: int, folder: Path) -> Scored:
        """Score what it was trained on by the influence on other samples, or what of it is not yet done in a folder."""
        recipe, batching = self.recipe, Batching(self.recipe.batch_tokens)
        blocks, part = self.classifier.blocks(recipe.blocks), FitPart(scale=recipe.scale_samples, seed=seed)
        passes = Passes.of(self.classifier, blocks, self.train, {TARGET: self.read(targets)}, batching, part)
        tell_left_out(self.classifier, recipe.blocks, blocks)
        check_first_batch(self.classifier, blocks, self.train, batching, recipe.check)
        scored = passes.score(_seeded(recipe.scorers, seed), folder, how=recipe.aggregate)
        assert scored is not None  # one process
        return scored


def fine_tune(
    recipe: Recipe, classes: Sequence[str], samples: Sequence[Sample], seed: int, folder: Path, run: Path
) -> Tuned:
    """Train a classifier in a folder of a run, or open it where that is done."""
    begun = time.perf_counter()
    classifier = open_classifier(recipe.model, classes, seed, recipe.fresh_head)
    runs.same_inputs(run, {"the model": fingerprint(classifier.backbone.base_model.state_dict())}, more=True)
    reading = Reading(max_length=min(recipe.max_length or classifier.limit, classifier.limit))
    train = SampleDataset(samples, classifier, reading)
    tell_cut(train, "training")
    classifier.adapt(recipe.tune, recipe.lora, seed)
    classifier.to(recipe.device)
    classifier.blocks(recipe.blocks)  # a mistake in their names costs no training
    phase = recipe.training.phase(recipe.tune, seed)
    return Tuned(classifier, recipe, train, begun, train_phase(classifier, train, phase, folder).seconds)


def cut(data: SampleDataset) -> int:
    """Count the samples that are longer than the model takes."""
    return sum(data[position].cut for position in range(len(data)))


def tell_cut(data: SampleDataset, name: str) -> None:
    """Print how many samples are cut, if any."""
    if count := cut(data):
        print(f"{count} of {len(data)} {name} samples were cut to {data.reading.max_length} tokens")


def _seeded(scorers: Sequence[Scorer], seed: int) -> list[Scorer]:
    """Let random scores differ from seed to seed."""
    return [
        replace(one, seed=one.seed + seed) if isinstance(one, SampleScorer) and hasattr(one, "seed") else one  # type: ignore[type-var]
        for one in scorers
    ]
