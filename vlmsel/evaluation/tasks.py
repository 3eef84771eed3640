"""The four benchmarks as tasks: their questions, how answers are scored, and what a blind model can reach."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from vlmsel.evaluation.metrics import gqa_answer, gqa_match, mean, pope_metrics, textvqa_accuracy, vqa_accuracy
from vlmsel.evaluation.questions import POPE_LABELS, Question, read_questions
from vlmsel.evaluation.vqa_text import textvqa_answer, vqav2_answer

Metrics = dict[str, float]


@dataclass(frozen=True)
class Task(ABC):
    """A benchmark: its questions and how a set of answers is scored, with fractions from 0 to 1.

    `protocol` says which of the rules in use is followed, for published numbers differ in them.
    """

    questions: Sequence[Question]
    headline: ClassVar[str] = "accuracy"
    protocol: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def score(self, predictions: Mapping[str, str]) -> Metrics:
        """Compute the metrics from the answer to each question, by id."""

    @abstractmethod
    def constant(self) -> str:
        """Return the answer that has the best headline when it is given to every question."""

    def majority(self) -> tuple[str, Metrics]:
        """Return the best constant answer and its metrics: what a blind model can reach."""
        constant = self.constant()
        return constant, self.score({question.id: constant for question in self.questions})

    def answers(self, predictions: Mapping[str, str]) -> list[tuple[Question, str]]:
        """Pair questions with their answers.

        Raises:
            ValueError: a question has no answer.
        """
        lacking = [q.id for q in self.questions if q.id not in predictions]
        if lacking:
            raise ValueError(
                f"{len(lacking)} of {len(self.questions)} questions have no answer, the first: {lacking[0]}"
            )
        return [(q, predictions[q.id]) for q in self.questions]


def _best_constant(
    questions: Sequence[Question], key: Callable[[str], str], credit: Callable[[str, Question], float]
) -> str:
    """Return the reference answer with the highest sum of credit over all questions; the first of equals.

    `key` brings an answer to the form in which it is compared. The answer is returned as it was written, because a
    key need not be its own key.
    """
    total: dict[str, float] = {}
    written: dict[str, str] = {}
    for question in questions:
        own = {key(reference): reference for reference in reversed(question.references)}
        for name, reference in own.items():
            written.setdefault(name, reference)
            total[name] = total.get(name, 0.0) + credit(reference, question)
    return written[max(total, key=lambda name: total[name])]


def _by_group(scored: Sequence[tuple[Question, float]]) -> Metrics:
    groups: dict[str, list[float]] = {}
    for question, value in scored:
        groups.setdefault(question.group, []).append(value)
    split = {f"accuracy/{group}": mean(groups[group]) for group in sorted(groups)}
    return {"accuracy": mean([value for _, value in scored]), **split}


class VQAv2(Task):
    """Soft accuracy, overall and by answer type; `accuracy_official` follows the script's rule for equal references."""

    protocol = {"normalize": "always (accuracy), official (accuracy_official)"}

    def score(self, predictions: Mapping[str, str]) -> Metrics:
        pairs = self.answers(predictions)
        official = mean([vqa_accuracy(answer, q.references, "official") for q, answer in pairs])
        return _by_group([(q, vqa_accuracy(a, q.references)) for q, a in pairs]) | {"accuracy_official": official}

    def constant(self) -> str:
        return _best_constant(self.questions, vqav2_answer, lambda answer, q: vqa_accuracy(answer, q.references))


class TextVQA(Task):
    """Soft accuracy, without OCR tokens in the prompt."""

    protocol = {"ocr_tokens": "none"}

    def score(self, predictions: Mapping[str, str]) -> Metrics:
        return {"accuracy": mean([textvqa_accuracy(a, q.references) for q, a in self.answers(predictions)])}

    def constant(self) -> str:
        return _best_constant(self.questions, textvqa_answer, lambda answer, q: textvqa_accuracy(answer, q.references))


class GQA(Task):
    """Exact accuracy, overall and on open (structural type query) and binary questions."""

    protocol = {"match": "strip, lower case, no final period (LLaVA)"}

    def score(self, predictions: Mapping[str, str]) -> Metrics:
        return _by_group([(q, gqa_match(answer, q.references[0])) for q, answer in self.answers(predictions)])

    def constant(self) -> str:
        return _best_constant(self.questions, gqa_answer, lambda answer, q: gqa_match(answer, q.references[0]))


class POPE(Task):
    """Mean over categories of F1 (headline), accuracy, precision, recall and share of yes; also each category's.

    `undefined` is the share of categories in which one of them is a division by zero.
    """

    headline = "f1"
    protocol = {"parse": "official: no if the first sentence has No, no or not"}

    def score(self, predictions: Mapping[str, str]) -> Metrics:
        pairs = self.answers(predictions)
        found = {}
        for category in sorted({q.group for q in self.questions}):
            own = [(answer, q.references[0]) for q, answer in pairs if q.group == category]
            found[category] = pope_metrics([answer for answer, _ in own], [label for _, label in own])
        names = [name for name in next(iter(found.values())) if name.islower()]  # all but the counts TP, FP, TN, FN
        split = {f"{name}/{category}": value for category, one in found.items() for name, value in one.items()}
        return {name: mean([one[name] for one in found.values()]) for name in names} | split

    def constant(self) -> str:
        return max(POPE_LABELS, key=lambda label: self.score({q.id: label for q in self.questions})[self.headline])


TASKS: dict[str, type[Task]] = {"vqav2": VQAv2, "gqa": GQA, "pope": POPE, "textvqa": TextVQA}


def load_task(name: str, questions: Sequence[str | Path], annotations: str | Path | None = None) -> Task:
    """Read a benchmark's official files.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: there is no such task, or a file is not what it should be; names file and question.
    """
    if name not in TASKS:
        raise ValueError(f"no task is called {name!r}; there are {', '.join(TASKS)}")
    return TASKS[name](read_questions(name, questions, annotations))
