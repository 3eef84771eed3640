"""A Hugging Face sequence classifier as an engine, for GLUE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from vlmsel.data.glue import GLUE_TASKS
from vlmsel.evaluation.engines.base import Engine
from vlmsel.evaluation.engines.likelihood import max_positions, set_padding
from vlmsel.models.generation import evaluating


class ClassifierEngine(Engine):
    """A sequence classifier of two classes.

    Its own names of the classes put its logits in the order of GLUE's labels, where they are GLUE's names; others, such
    as LABEL_0, leave them as they are. The protocol has the names in the order used and what settled it.

    Raises:
        ValueError: the classifier has another number of classes.
    """

    kind = "a sequence classifier"
    classifies = True

    def __init__(self, model: Any, tokenizer: Any) -> None:
        if model.config.num_labels != 2:
            raise ValueError(
                f"the classifier has {model.config.num_labels} classes, GLUE's tasks have 2; give one of 2 classes"
            )
        self.model, self.tokenizer = model, tokenizer
        set_padding(tokenizer)
        if model.config.pad_token_id is None:
            model.config.pad_token_id = tokenizer.pad_token_id  # classifiers on causal models look for the last token
        self.limit = text_limit(model, tokenizer)
        names = [str(model.config.id2label[i]) for i in (0, 1)]
        order = glue_order(names)
        self.order = order or (0, 1)
        self.about = {"classes": [names[i] for i in self.order], "classes_by": "name" if order else "position"}

    @torch.no_grad()
    def classify(self, texts: Sequence[Sequence[str]]) -> list[list[float]]:
        columns = [list(column) for column in zip(*texts, strict=True)]
        full = self.tokenizer(*columns, verbose=False)["input_ids"]
        self.cut += sum(len(ids) > self.limit for ids in full)
        batch = self.tokenizer(
            *columns,
            padding=True,
            padding_side="right",
            truncation=True,
            max_length=self.limit,
            return_tensors="pt",
        )
        with evaluating(self.model):
            return self.model(**batch.to(self.model.device)).logits[:, list(self.order)].tolist()


def text_limit(model: Any, tokenizer: Any) -> int:
    """Return the longest text in tokens, special ones included, that a classifier and its tokenizer take.

    RoBERTa and its kin count positions from behind the padding's index, which their configuration does not subtract.
    """
    limits = [max_positions(model, tokenizer), int(tokenizer.model_max_length)]
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            limits.append(module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1))
    return min(limits)


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
