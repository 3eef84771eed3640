"""What detect's study asks of a classifier beside its scores."""

import math
from types import SimpleNamespace

import pytest
import torch
from tiny_text import save_encoder, sentences

from vlmsel.data.dataset import Reading, SampleDataset
from vlmsel.data.sample import Sample, Turn
from vlmsel.models.classifier_files import open_classifier
from vlmsel.studies.tuned import Tuned

CLASSES = ("bad", "good", "odd")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return str(save_encoder(tmp_path_factory.mktemp("encoder") / "model"))


def test_the_likely_label_is_the_most_probable_of_the_others(encoder):
    texts = [text for text, _ in sentences(12)]
    given = [CLASSES[i % 3] for i in range(12)]
    samples = [
        Sample(20 + i, "mine", (), (Turn("human", text), Turn("gpt", label)))
        for i, (text, label) in enumerate(zip(texts, given, strict=True))
    ]
    classifier = open_classifier(encoder, CLASSES, 0)
    classifier.to(torch.device("cpu"))
    classifier.adapt("last-layer", None)
    data = SampleDataset(samples[:3], classifier, Reading(max_length=64))
    judged = Tuned(classifier, SimpleNamespace(batch_tokens=64), data, 0.0, 0.0).judge(samples)
    expected = []
    for sample, label in zip(samples, given, strict=True):
        logits = classifier.logits(classifier.collate([classifier.encode(sample, Reading(max_length=64))]))[0].tolist()
        others = [(value, name) for value, name in zip(logits, CLASSES, strict=True) if name != label]
        whole = sum(map(math.exp, logits))
        own, best = (math.exp(logits[CLASSES.index(name)]) / whole for name in (label, max(others)[1]))
        expected.append((sample.uid, max(others)[1], pytest.approx(best, abs=1e-5), pytest.approx(own, abs=1e-5)))
    assert judged.likely()[1:] == expected
