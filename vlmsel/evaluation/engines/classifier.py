"""A sequence classifier as an engine, for GLUE."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vlmsel.data.glue import GLUE_TASKS
from vlmsel.data.text_batches import TextCollator, encode_texts
from vlmsel.evaluation.engines.base import Engine
from vlmsel.gradients.persample import evaluating
from vlmsel.models.classifier import Classifier
from vlmsel.models.language import pad_id


class ClassifierEngine(Engine):
    """A sequence classifier of two classes.

    Its own names of the classes put its logits in the order of GLUE's labels, where they are GLUE's names; others, such
    as LABEL_0, leave them as they are. The protocol has the names in the order used and what settled it.

    Raises:
        ValueError: the classifier has another number of classes.
    """

    kind = "a sequence classifier"
    classifies = True

    def __init__(self, subject: Classifier) -> None:
        names = subject.classes
        if len(names) != 2:
            raise ValueError(f"the classifier has {len(names)} classes, GLUE's tasks have 2; give one of 2 classes")
        self.subject, order = subject, glue_order(names)
        self.order = order or (0, 1)
        self.about = {"classes": [names[i] for i in self.order], "classes_by": "name" if order else "position"}

    @torch.no_grad()
    def classify(self, texts: Sequence[Sequence[str]]) -> list[list[float]]:
        subject = self.subject
        items = [encode_texts(subject.tokenizer, i, tuple(own), 0, subject.limit) for i, own in enumerate(texts)]
        self.cut += sum(item.cut for item in items)
        batch = TextCollator(pad_id(subject.tokenizer))(items)
        with evaluating(subject.model):
            return subject.logits(batch.to(subject.device))[:, list(self.order)].tolist()


def glue_order(names: Sequence[str]) -> tuple[int, ...] | None:
    """Return where a classifier has GLUE's label 0 and label 1, by its names of the classes; None for other names.

    >>> glue_order(["not_entailment", "entailment"]), glue_order(["NEGATIVE", "POSITIVE"]), glue_order(["a", "b"])
    ((1, 0), (0, 1), None)
    """
    own = [name.casefold().replace("-", "_").replace(" ", "_") for name in names]
    for task in GLUE_TASKS.values():
        if sorted(own) == sorted(task.classes):
            return tuple(own.index(name) for name in task.classes)
    return None
