"""Text benchmarks as tasks: multiple choice by log-likelihood, and GLUE by class.

Multiple choice by the rules of lm-evaluation-harness: `acc` takes the choice with the highest log-likelihood,
`acc_norm` the highest per character, `acc_bytes` per byte. GLUE takes the class with the highest score, which is a
classifier's logit or the log-likelihood of the word that stands for the class.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from vlmsel.data.glue import GlueExample
from vlmsel.data.multiple_choice import ChoiceQuestion
from vlmsel.evaluation.metrics import GLUE, glue_metrics, multiple_choice
from vlmsel.evaluation.task import Answers, Asked, Metrics, Task
from vlmsel.evaluation.text.prompts import GLUE_CHOICES, choice_context, glue_context

RULES = "lm-evaluation-harness: context and choice tokenised together"


@dataclass(frozen=True)
class ChoiceTask(Task):
    """One of several texts is the right one; `acc` (headline), `acc_norm`, `acc_bytes`."""

    name: str
    questions: Sequence[ChoiceQuestion]

    headline = "acc"
    answer = "loglikelihoods"
    rules = {"scoring": RULES, "normalize": "none (acc), by characters (acc_norm), by UTF-8 bytes (acc_bytes)"}

    @property
    def ids(self) -> Collection[str]:
        return [question.id for question in self.questions]

    @property
    def groups(self) -> Mapping[str, int]:
        counts = Counter(len(question.choices) for question in self.questions)
        return {f"{choices} choices": counts[choices] for choices in sorted(counts)}

    def asked(self) -> Asked:
        """Return each question's context and the choices that may follow it."""
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
class GlueTask(Task):
    """A sentence, or a pair of them, is of one of two classes; the metrics of `glue_metrics`."""

    name: str
    examples: Sequence[GlueExample]
    skipped: int = 0  # malformed rows of the file, which QQP has

    answer = "scores"
    rules = {"scoring": f"a classifier's logits, or log-likelihoods ({RULES})", "normalize": "none"}

    @property
    def headline(self) -> str:  # type: ignore[override]
        """The metric that GLUE's board shows: accuracy, or Matthews' correlation for CoLA."""
        return GLUE[self.name][0]

    @property
    def ids(self) -> Collection[str]:
        return [example.id for example in self.examples]

    @property
    def groups(self) -> Mapping[str, int]:
        counts = Counter(example.label for example in self.examples)
        return {f"class {label}": counts[label] for label in (0, 1)}

    def asked(self) -> Asked:
        """Return each example's texts and the context and choices that a language model sees of them."""
        return {
            example.id: {
                "prompt": glue_context(self.name, example),
                "choices": list(GLUE_CHOICES[self.name]),
                "texts": list(example.texts),
            }
            for example in self.examples
        }

    @property
    def notes(self) -> list[str]:
        return [f"malformed rows of the file that were left out: {self.skipped}"] if self.skipped else []

    def values(self, answers: Answers) -> dict[str, list[float]]:
        if "accuracy" not in GLUE[self.name]:
            return {}
        return {"accuracy": [float(self._class(answers[one.id]) == one.label) for one in self.examples]}

    def others(self, answers: Answers) -> Metrics:
        return self._metrics([self._class(answers[example.id]) for example in self.examples])

    def majority(self) -> tuple[str, Metrics]:
        found = {label: self._metrics([label] * len(self.examples)) for label in (0, 1)}
        label = max(found, key=lambda one: found[one][self.headline])
        return f"class {label}", found[label]

    def _metrics(self, classes: Sequence[int]) -> Metrics:
        return dict(glue_metrics(self.name, classes, [int(example.label or 0) for example in self.examples]))

    @staticmethod
    def _class(scores: Sequence[float]) -> int:
        return int(scores[1] > scores[0])
