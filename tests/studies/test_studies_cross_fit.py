"""Folds: nobody is judged by a model that has seen it, nobody scores for itself, and scores are means over models."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vlmsel.data.labelled import label_of, labelled_text
from vlmsel.scoring.pool_pass import Scored
from vlmsel.studies import cross_fit as tested
from vlmsel.studies.labelled_data import Drawn
from vlmsel.studies.out_of_fold import Judged
from vlmsel.studies.study import Seed

CLASSES = ("bad", "good")
SAMPLES = tuple(labelled_text(3 * i + 1, [f"text {i}"], CLASSES[i % 2]) for i in range(23))


class Fake:
    """A model that remembers what it was shown; its probabilities follow from the uid and from who it is."""

    def __init__(self, number, learnt):
        self.number, self.learnt, self.judged, self.targets, self.seconds = number, learnt, [], [], 1.5

    def read(self, samples):
        return [sample.uid for sample in samples]

    def judge(self, samples):
        self.judged = [sample.uid for sample in samples]
        own = np.array([(uid % 10 + self.number + 1) / 15 for uid in self.judged])
        given = np.array([CLASSES.index(label_of(sample)) for sample in samples])
        return Judged(self.judged, CLASSES, given, np.stack([own, 1 - own], 1))

    def score(self, targets, seed, folder):
        self.targets = [sample.uid for sample in targets]
        order = self.learnt[::-1]  # batches have an order of their own
        values = [[uid * (self.number + 1.0) for uid in order], [1.0 + uid + self.number for uid in order]]
        names = (("One", "validation"), ("Two", "validation"))
        return Scored(
            torch.tensor(order),
            torch.ones(len(order)) * self.number,
            torch.tensor(values),
            names,
            {"f": self.number},
            {},
        )


def outside(monkeypatch, tmp_path, folds, validation=()):
    """Run the folds with fakes; return what came out, and the fakes."""
    made = []

    def fine_tune(recipe, classes, samples, seed, folder, run):
        assert folder == tmp_path / "seed4" / f"fold{len(made)}" and (seed, run) == (4, tmp_path)
        made.append(Fake(len(made), [sample.uid for sample in samples]))
        return made[-1]

    monkeypatch.setattr(tested, "fine_tune", fine_tune)
    drawn = Drawn(SAMPLES, None, tuple(validation))
    found = tested.cross_fit(SimpleNamespace(folds=folds), CLASSES, drawn, Seed(4, tmp_path / "seed4"))
    return found, made


@pytest.mark.parametrize("folds", [2, 3, 11])
def test_every_sample_is_judged_once_by_a_model_that_was_trained_on_all_but_its_fold(monkeypatch, tmp_path, folds):
    found, made = outside(monkeypatch, tmp_path, folds)
    uids = [sample.uid for sample in SAMPLES]
    assert len(made) == folds and sorted(uid for one in made for uid in one.judged) == uids
    for one in made:
        assert not set(one.judged) & set(one.learnt) and sorted(one.judged + one.learnt) == uids
    assert found.judged.uids == uids and found.seconds == 1.5 * folds and found.data == uids
    for uid, row, given, sample in zip(uids, found.judged.probabilities, found.judged.given, SAMPLES, strict=True):
        judge = next(one for one in made if uid in one.judged)
        assert row[0] == pytest.approx((uid % 10 + judge.number + 1) / 15) and CLASSES[given] == label_of(sample)


def test_targets_are_the_samples_of_the_unseen_fold_that_its_model_is_confident_of(monkeypatch, tmp_path):
    _, made = outside(monkeypatch, tmp_path, 3)
    label = {sample.uid: label_of(sample) for sample in SAMPLES}
    for one in made:
        own = {uid: (uid % 10 + one.number + 1) / 15 for uid in one.judged}
        own = {uid: p if label[uid] == "bad" else 1 - p for uid, p in own.items()}
        mean = {name: np.mean([p for uid, p in own.items() if label[uid] == name]) for name in CLASSES}
        assert one.targets == [uid for uid, p in own.items() if p >= mean[label[uid]] - 1e-12]
        assert set(map(label.get, one.targets)) == set(CLASSES)


def test_scores_are_means_over_the_models_trained_on_a_sample_each_over_its_root_mean_square(monkeypatch, tmp_path):
    found, made = outside(monkeypatch, tmp_path, 3)
    assert found.scored.names == (("One", "validation"), ("Two", "validation"))
    for column, of in enumerate((lambda one, uid: uid * (one.number + 1.0), lambda one, uid: 1.0 + uid + one.number)):
        for uid, score in zip(found.scored.uids.tolist(), found.scored.scores[column].tolist(), strict=True):
            seen = [one for one in made if uid in one.learnt]
            scale = [np.sqrt(np.mean([of(one, other) ** 2 for other in one.learnt])) for one in seen]
            expected = np.mean([of(one, uid) / by for one, by in zip(seen, scale, strict=True)])
            assert len(seen) == 2 and score == pytest.approx(expected, rel=1e-6)
    losses = [np.mean([one.number for one in made if uid in one.learnt]) for uid in found.scored.uids.tolist()]
    assert found.scored.losses.tolist() == pytest.approx(losses)
    assert found.scored.details == {f"fold{i}": {"f": i} for i in range(3)}


def test_clean_samples_leave_the_scores_to_the_model_of_all(monkeypatch, tmp_path):
    found, made = outside(monkeypatch, tmp_path, 2, SAMPLES[:2])
    assert found.scored is None and not any(one.targets for one in made)
