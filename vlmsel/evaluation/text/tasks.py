"""Text benchmarks as tasks: multiple choice by log-likelihood, and GLUE by class.

Multiple choice by the rules of lm-evaluation-harness: `acc` takes the choice with the highest log-likelihood,
`acc_norm` the highest per character, `acc_bytes` per byte. GLUE takes the class with the highest score, which is a
classifier's logit or the log-likelihood of the word that stands for the class.
"""

from __future__ import annotations

from abc import ABC
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmsel.data.glue import GlueExample
from vlmsel.data.multiple_choice import ChoiceQuestion
from vlmsel.evaluation.asking import Asking
from vlmsel.evaluation.engines.base import Engine
from vlmsel.evaluation.harness import Responder
from vlmsel.evaluation.metrics import GLUE, glue_metrics, multiple_choice
from vlmsel.evaluation.task import Answers, Asked, Metrics, Task
from vlmsel.evaluation.text.prompts import GLUE_CHOICES, choice_context, glue_context

RULES = "lm-evaluation-harness: context and choice tokenised together"
NO_IMAGE = {"template": "none", "image_mode": "none"}


@dataclass(frozen=True)
class TextTask(Task, ABC):
    """A benchmark of texts whose choices a language model scores."""

    name: str

    def responder(self, engine: Engine, asking: Asking, images: Path) -> Responder[Any]:
        asked = self.asked(asking)
        return Responder(lambda ids: [asked[i] for i in ids], lambda lines: _likelihoods(engine, lines))

    def how(self, engine: Engine, asking: Asking) -> dict[str, Any]:
        return {"prompt": "lm-evaluation-harness", "decoding": "log-likelihoods", **NO_IMAGE}


def _likelihoods(engine: Engine, lines: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """Score every choice of several questions at once."""
    pairs = [(line["prompt"], f" {choice}") for line in lines for choice in line["choices"]]
    values = iter(engine.loglikelihoods(pairs))
    return [[next(values) for _ in line["choices"]] for line in lines]


@dataclass(frozen=True)
class ChoiceTask(TextTask):
    """One of several texts is the right one; `acc` (headline), `acc_norm`, `acc_bytes`."""

    questions: Sequence[ChoiceQuestion]

    headline = "acc"
    answer = "loglikelihoods"
    rules = {"scoring": RULES, "normalize": "none (acc), by characters (acc_norm), by UTF-8 bytes (acc_bytes)"}

    @property
    def groups(self) -> Mapping[str, int]:
        counts = Counter(len(question.choices) for question in self.questions)
        return {f"{choices} choices": counts[choices] for choices in sorted(counts)}

    def asked(self, asking: Asking) -> Asked:
        return {
            question.id: {"prompt": choice_context(self.name, question), "choices": list(question.choices)}
            for question in self.questions
        }

    def values(self, answers: Answers) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        for question in self.questions:
            for rule, chosen in multiple_choice(answers[question.id], question.choices).items():
                found.setdefault(rule, []).append(float(chosen == question.answer))
        return found

    def majority(self) -> tuple[str, Metrics]:
        places = Counter(question.answer for question in self.questions)
        place = max(sorted(place for place in places if place is not None), key=lambda one: places[one])
        return f"choice {place + 1}", {self.headline: places[place] / len(self.questions)}


@dataclass(frozen=True)
class GlueTask(TextTask):
    """A sentence, or a pair of them, is of one of two classes; the metrics of `glue_metrics`."""

    questions: Sequence[GlueExample]
    skipped: int = 0  # malformed rows of the file, which QQP has

    answer = "scores"
    rules = {"scoring": f"a classifier's logits, or log-likelihoods ({RULES})", "normalize": "none"}

    @property
    def headline(self) -> str:  # type: ignore[override]
        """The metric that GLUE's board shows: accuracy, or Matthews' correlation for CoLA."""
        return GLUE[self.name][0]

    @property
    def groups(self) -> Mapping[str, int]:
        counts = Counter(example.label for example in self.questions)
        return {f"class {label}": counts[label] for label in (0, 1)}

    def asked(self, asking: Asking) -> Asked:
        """Return the context and choices that a language model sees of each example, and its texts."""
        return {
            example.id: {
                "prompt": glue_context(self.name, example),
                "choices": list(GLUE_CHOICES[self.name]),
                "texts": list(example.texts),
            }
            for example in self.questions
        }

    def responder(self, engine: Engine, asking: Asking, images: Path) -> Responder[Any]:
        if not engine.classifies:
            return super().responder(engine, asking, images)
        texts = {example.id: example.texts for example in self.questions}
        return Responder(lambda ids: [texts[i] for i in ids], engine.classify)

    def how(self, engine: Engine, asking: Asking) -> dict[str, Any]:
        if not engine.classifies:
            return super().how(engine, asking)
        return {"prompt": "the texts alone", "decoding": "class with the highest logit", **NO_IMAGE}

    @property
    def notes(self) -> list[str]:
        return [f"malformed rows of the file that were left out: {self.skipped}"] if self.skipped else []

    def values(self, answers: Answers) -> dict[str, list[float]]:
        if "accuracy" not in GLUE[self.name]:
            return {}
        return {"accuracy": [float(self._class(answers[one.id]) == one.label) for one in self.questions]}

    def others(self, answers: Answers) -> Metrics:
        return self._metrics([self._class(answers[example.id]) for example in self.questions])

    def majority(self) -> tuple[str, Metrics]:
        found = {label: self._metrics([label] * len(self.questions)) for label in (0, 1)}
        label = max(found, key=lambda one: found[one][self.headline])
        return f"class {label}", found[label]

    def _metrics(self, classes: Sequence[int]) -> Metrics:
        return dict(glue_metrics(self.name, classes, [int(example.label or 0) for example in self.questions]))

    @staticmethod
    def _class(scores: Sequence[float]) -> int:
        return int(scores[1] > scores[0])
