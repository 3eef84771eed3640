"""What detect's study asks of a classifier beside its scores."""

import pytest
import torch
from tiny_text import save_encoder, sentences

from vlmsel.data.dataset import Reading, SampleDataset
from vlmsel.data.sample import Sample, Turn
from vlmsel.models.classifier_files import open_classifier
from vlmsel.scoring.batches import Batching
from vlmsel.studies.mislabelled import _likely

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
    data = SampleDataset(samples, classifier, Reading(max_length=64))
    found = _likely(classifier, Batching(64).plan(classifier, data, None))
    expected = []
    for sample, label in zip(samples, given, strict=True):
        logits = classifier.logits(classifier.collate([classifier.encode(sample, Reading(max_length=64))]))[0].tolist()
        others = [(value, name) for value, name in zip(logits, CLASSES, strict=True) if name != label]
        expected.append((sample.uid, max(others)[1]))
    assert found == expected
