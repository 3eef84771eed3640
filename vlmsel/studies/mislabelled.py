"""The study of `vlmsel detect`: fine-tune a classifier on labels as given, score its training samples by their
influence on clean validation samples, and measure what the scores find.

`seed<k>/` gets `model/` and `phase.json` (the training), what the passes over a pool leave, `scores.parquet`,
`labels.csv`, `likely.csv` (the class that the model takes a sample for when the given one is ruled out, how probable it
is and how the given one) and, last, `metrics.json`; what is there is not done again. With folds (`cross_fit`),
`fold<f>/` are of classifiers that have not seen a part of the samples, and `likely.csv` is theirs. Without validation
samples there is no other model, and the scores are theirs too.

Beside the scorers stand 1 - self-confidence, a baseline: by the model that was trained on the sample, and out of fold.
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
from vlmsel.data.dataset import SampleDataset
from vlmsel.scorers import Exact, Scorer
from vlmsel.scoring.pool_pass import Scored
from vlmsel.scoring.pool_table import records_of, write_scores
from vlmsel.studies import detection
from vlmsel.studies.cross_fit import cross_fit
from vlmsel.studies.labelled_data import Drawn, LabelledData, write_labels
from vlmsel.studies.out_of_fold import Judged, folds_of
from vlmsel.studies.study import Seed, Study
from vlmsel.studies.tuned import Recipe, Tuned, cut, fine_tune, tell_cut

ARM = "labels as given"  # the one way that a seed's model is made
INSIDE, OUTSIDE = "SelfConfidence", "SelfConfidence.folds"


def baselines(clean: bool, folds: int) -> list[str]:
    """Name the baselines that a study has with or without clean samples and folds."""
    return [*([INSIDE] if clean else []), *([OUTSIDE] if folds else [])]


@dataclass(frozen=True)
class Mislabelled(Study[Drawn, Tuned | None, dict[str, Any]]):
    """Every seed draws subsets and flips, and its answer is `metrics.json`."""

    recipe: Recipe
    data: LabelledData
    drawn: Sequence[Drawn]
    config: str

    def __post_init__(self) -> None:
        for one in self.drawn if self.recipe.folds else ():
            folds_of(one.given, self.recipe.folds, 0)  # a class with too few samples costs no training

    def kept(self, seed: Seed, arm: str) -> dict[str, Any] | None:
        path = seed.folder / detection.METRICS
        return runs.read_json(path) if path.is_file() else None

    def subset(self, seed: Seed, arm: str) -> Drawn:
        return self.drawn[seed.number]

    def tune(self, seed: Seed, arm: str, data: Drawn) -> Tuned | None:
        if not data.validation:
            return None
        model = fine_tune(self.recipe, self.data.classes, data.train, seed.number, seed.folder, seed.folder.parent)
        tell_cut(model.read(data.validation), "validation")
        return model

    def ask(self, seed: Seed, arm: str, model: Tuned | None) -> dict[str, Any]:
        drawn, start = self.drawn[seed.number], time.perf_counter()
        outside = cross_fit(self.recipe, self.data.classes, drawn, seed) if self.recipe.folds else None
        if model is None:
            assert outside is not None and outside.scored is not None  # without either the command refuses
            data, judged, learnt, scored = outside.data, outside.judged, outside.judged.accuracy(), outside.scored
            print(f"seed {seed.number}: {_told('out-of-fold', learnt)}", flush=True)
        else:
            data, judged, learnt = model.train, model.judge(drawn.train), model.judge(drawn.validation).accuracy()
            print(f"seed {seed.number}: {_told('validation', learnt)}", flush=True)
            scored = _beside(model.score(drawn.validation, seed.number, seed.folder), INSIDE, judged)
        if outside is not None:
            judged, scored = outside.judged, _beside(scored, OUTSIDE, outside.judged)
        self._write(seed, data, scored, judged)
        training = sum(one.seconds for one in (model, outside) if one is not None)
        begun = start if model is None else model.begun
        metrics = {
            "seed": seed.number,
            "train": len(drawn.train),
            "validation": len(drawn.validation),
            "wrong": None if drawn.wrong is None else sum(drawn.wrong),
            "cut": {"train": cut(data)},
            "not_scored": len(scored.left_out),
            **learnt,
            "out_of_fold": None if outside is None else outside.judged.estimate(),
            **_measure(scored, drawn, self.recipe.scorers),
            "seconds": {"fine-tuning": training, "all": time.perf_counter() - begun},
        }
        runs.write_json(seed.folder / detection.METRICS, metrics)
        return metrics

    def _write(self, seed: Seed, data: SampleDataset, scored: Scored, judged: Judged) -> None:
        """Write all of a seed but its metrics."""
        train = self.data.train
        runs.report_left_out(seed.folder / "skipped.json", scored.left_out, train.total, train.name)
        write_labels(seed.folder / detection.LABELS, self.drawn[seed.number])
        runs.write_csv(seed.folder / detection.LIKELY, judged.likely())
        about = {"pool": train.name, "pool_sha256": self.data.digests()["the training data"], "config": self.config}
        ids = [train.ids.get(uid, "") for uid in range(train.total)] if train.ids else None
        records = replace(records_of(data, {}, train.total), ids=ids)
        write_scores(seed.folder / detection.SCORES, records, scored, about)


def _beside(scored: Scored, name: str, judged: Judged) -> Scored:
    """Put 1 - self-confidence beside the scores."""
    own = dict(zip(judged.uids, (1 - judged.confidence).tolist(), strict=True))
    column = torch.tensor([[own[uid] for uid in scored.uids.tolist()]], dtype=torch.float64)
    return scored.with_columns(column, [(name, detection.TARGET)], {})


def _told(what: str, learnt: Mapping[str, float]) -> str:
    shares = {name: f"{100 * share:.1f} %" for name, share in learnt.items()}
    text = f"{what} accuracy {shares['accuracy']} (the largest class has {shares['majority']})"
    if learnt["accuracy"] > learnt["majority"]:
        return text
    mend = "tune it longer or take a better encoder"
    return f"{text}; the model tells the classes no better apart than a constant answer: {mend}"


def _measure(scored: Scored, drawn: Drawn, scorers: Sequence[Scorer]) -> dict[str, Any]:
    """Measure each scorer: what it finds where wrong labels are known, and how it agrees with an exact one."""
    scores = scored.scores.double().numpy()
    keep = np.isfinite(scores[0])
    values = {scorer: one[keep] for (scorer, _), one in zip(scored.names, scores, strict=True)}
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
