"""Labels without a clean set: k classifiers, each trained on all folds but one and judging that one.

Self-confidence and likely label of a sample come from the one classifier that has not seen it. Influence asks what it
asks with a clean set: how does training on a sample change the loss of samples that the classifier has not seen? So the
targets of fold f's classifier are samples of fold f, and what it was trained on is scored. Only those are targets that
it is confident of (`Judged.confident`): most of the wrong labels are among the others, and in the mean of all gradients
they cancel right ones. A sample is scored by k - 1 classifiers, never for itself; their gradients differ in scale, so
that each one's scores are divided by their root mean square before the mean is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

import numpy as np
import torch

from vlmsel.data.dataset import SampleDataset
from vlmsel.scoring.pool_pass import Scored
from vlmsel.studies.labelled_data import Drawn
from vlmsel.studies.out_of_fold import Judged, folds_of
from vlmsel.studies.study import Seed
from vlmsel.studies.tuned import Recipe, fine_tune


@dataclass(frozen=True)
class Outside:
    """All samples as classifiers read them, judged out of fold; their scores, where there are no clean targets; seconds
    of training."""

    data: SampleDataset
    judged: Judged
    scored: Scored | None
    seconds: float


def cross_fit(recipe: Recipe, classes: Sequence[str], drawn: Drawn, seed: Seed) -> Outside:
    """Judge, and without clean samples score, what a seed has drawn; `fold<f>/` keep what is done.

    Raises:
        ValueError: a class has fewer samples than there are folds.
    """
    fold, judged, scored, seconds = folds_of(drawn.given, recipe.folds, seed.number), [], [], 0.0
    for number in range(recipe.folds):
        folder: Path = seed.folder / f"fold{number}"
        held, learnt = (list(compress(drawn.train, mask)) for mask in (fold == number, fold != number))
        model = fine_tune(recipe, classes, learnt, seed.number, folder, seed.folder.parent)
        judged.append(model.judge(held))
        if not drawn.validation:
            goal = list(compress(held, judged[-1].confident()))
            scored.append(model.score(goal, seed.number, folder))
        seconds += model.seconds
    return Outside(model.read(drawn.train), _whole(drawn, judged), joined(drawn, scored) if scored else None, seconds)


def _whole(drawn: Drawn, parts: Sequence[Judged]) -> Judged:
    """Put the folds together, in the order in which samples were drawn."""
    row = {
        uid: (given, own)
        for part in parts
        for uid, given, own in zip(part.uids, part.given, part.probabilities, strict=True)
    }
    uids = [sample.uid for sample in drawn.train]
    given, probabilities = (np.array([row[uid][i] for uid in uids]) for i in (0, 1))
    return Judged(uids, parts[0].classes, given, probabilities)


def joined(drawn: Drawn, parts: Sequence[Scored]) -> Scored:
    """Return each sample's mean over the classifiers that scored it, each one's scores over their root mean square.

    A sample that one of them left out is left out.
    """
    uids = torch.tensor([sample.uid for sample in drawn.train])
    place = {uid: i for i, uid in enumerate(uids.tolist())}
    losses, scores = torch.zeros(len(uids)), torch.zeros(len(parts[0].names), len(uids), dtype=torch.float64)
    times = torch.zeros(len(uids))
    for part in parts:
        where = torch.tensor([place[uid] for uid in part.uids.tolist()])
        fine = part.scores.isfinite().all(0)
        scale = part.scores[:, fine].double().square().mean(1, keepdim=True).sqrt()
        scores[:, where] += part.scores.double() / scale.clamp(min=torch.finfo(torch.float64).tiny)
        losses[where] += part.losses.to(losses)
        times[where] += 1
    left_out = {uid: why for part in parts for uid, why in part.left_out.items()}
    details = {f"fold{number}": part.details for number, part in enumerate(parts)}
    return Scored(uids, losses / times, scores / times, parts[0].names, details, left_out)
