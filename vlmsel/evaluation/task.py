"""What a benchmark is: what is asked and how, how answers are scored, and what a blind model can reach.

Most metrics are means over questions, so that they have a standard error, s / sqrt(n) of the per-question values (for
right and wrong answers that is sqrt(p (1 - p) / (n - 1))).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from vlmsel.evaluation.asking import Asking
from vlmsel.evaluation.engines.base import Engine
from vlmsel.evaluation.harness import Responder
from vlmsel.evaluation.metrics import mean, require_answers, standard_error

Metrics = dict[str, Any]  # name -> a number, or None where it cannot be computed
Answers = Mapping[str, Any]  # question id -> a text, or a list of log-probabilities
Asked = dict[str, dict[str, Any]]  # question id -> what the answer depends on, as it is written beside the answer


@dataclass(frozen=True)
class TaskFiles:
    """The files of one benchmark.

    Attributes:
        questions: the official question file, or a list of them (POPE has three).
        images: the folder with the benchmark's images; text tasks have none.
        annotations: the official answers, where they are a file of their own (VQAv2, PIQA's labels), or ScienceQA's
            pid_splits.json.
        ocr: TextVQA's OCR tokens (TextVQA_Rosetta_OCR_v0.2_val.json); with it every question is asked without and with.
        task: the benchmark, when the entry has another name.
        metric: what one's own questions are scored by: exact_match, vqa_accuracy or choice.
    """

    questions: str | Path | Sequence[str | Path]
    images: str | Path | None = None
    annotations: str | Path | None = None
    ocr: str | Path | None = None
    task: str | None = None
    metric: str | None = None

    @property
    def paths(self) -> list[Path]:
        """The question files."""
        several = [self.questions] if isinstance(self.questions, str | Path) else self.questions
        return list(map(Path, several))


class Task(ABC):
    """A benchmark with its questions, which have an `id`, as a frozen dataclass; fractions from 0 to 1.

    `answer` is the name of what a model gives: `text`, `loglikelihoods` (of choices), `logprobs` (of first words).
    `rules` says which of the rules in use is followed, for published numbers differ in them.
    """

    headline: ClassVar[str] = "accuracy"
    answer: ClassVar[str] = "text"
    rules: ClassVar[Mapping[str, str]] = {}
    questions: Sequence[Any]

    @property
    def ids(self) -> list[str]:
        """The ids of all questions."""
        return [question.id for question in self.questions]

    @property
    @abstractmethod
    def groups(self) -> Mapping[str, int]:
        """How many questions there are of each kind."""

    @property
    def notes(self) -> list[str]:
        """What a reader of the result must know about the questions."""
        return []

    def unit(self, question: Any) -> str:
        """Return what `--limit` draws a question with: those of one unit are drawn together."""
        return question.id

    # How it is asked

    @abstractmethod
    def asked(self, asking: Asking) -> Asked:
        """Return what is asked, by question id."""

    @abstractmethod
    def responder(self, engine: Engine, asking: Asking, images: Path) -> Responder[Any]:
        """Return how an engine answers batches of questions, whose images lie in a folder."""

    @abstractmethod
    def how(self, engine: Engine, asking: Asking) -> dict[str, Any]:
        """Return how answers come about beside what the engine says of itself: prompt and decoding."""

    def order(self) -> Callable[[str], Any] | None:
        """Return what questions are sorted by, given by id, to make batches; None for the length of what is asked."""
        return None

    # How answers are scored

    def values(self, answers: Answers) -> dict[str, list[float]]:
        """Return the per-question values of every metric that is their mean; `answers` is complete."""
        return {}

    def others(self, answers: Answers) -> Metrics:
        """Compute the metrics that are no means; `answers` is complete."""
        return {}

    def other_errors(self, answers: Answers) -> dict[str, float]:
        """Return the standard errors of `others`, where they have one."""
        return {}

    def strays(self, answers: Answers) -> tuple[str, int]:
        """Return how many answers fit none of the task's labels, behind what they are called; 0 where it has none."""
        return "", 0

    @abstractmethod
    def majority(self) -> tuple[str, Metrics]:
        """Return the best constant answer and its metrics: what a blind model can reach."""

    def score(self, answers: Answers) -> Metrics:
        """Compute every metric from the answer to each question, by id.

        Raises:
            ValueError: a question has no answer.
        """
        require_answers(self.ids, answers)
        means = {name: mean(values) for name, values in self.values(answers).items()}
        return means | self.others(answers)

    def errors(self, answers: Answers) -> dict[str, float]:
        """Return the standard error of each metric that has one.

        Raises:
            ValueError: a question has no answer.
        """
        require_answers(self.ids, answers)
        own = {name: standard_error(values) for name, values in self.values(answers).items()}
        return own | self.other_errors(answers)
