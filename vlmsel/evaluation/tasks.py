"""The four benchmarks as tasks: questions read from the official files, and their metrics.

VQAv2    questions and annotations (`v2_OpenEnded_mscoco_*_questions.json`, `v2_mscoco_*_annotations.json`)
GQA      a dictionary of questions (`testdev_balanced_questions.json`)
POPE     JSON lines, one file per category (`coco_pope_{random,popular,adversarial}.json`)
TextVQA  `TextVQA_0.5.1_val.json`; questions are asked without OCR tokens
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmsel.evaluation.metrics import gqa_score, mean, pope_answer, pope_metrics, textvqa_score, vqav2_score
from vlmsel.evaluation.vqa_text import textvqa_answer, vqav2_answer
from vlmsel.runs import read_json

Metrics = dict[str, float]
CANDIDATES = 20  # most frequent answers tried as the constant answer


@dataclass(frozen=True)
class Question:
    """A question about an image; `group` is what metrics are split by, `references` are the right answers."""

    id: str
    image: str
    text: str
    references: tuple[str, ...]
    group: str


@dataclass(frozen=True)
class Task(ABC):
    """A benchmark: its questions and how a set of answers is scored, with fractions from 0 to 1."""

    questions: Sequence[Question]
    headline = "accuracy"

    @abstractmethod
    def score(self, predictions: Mapping[str, str]) -> Metrics:
        """Compute the metrics from the answer to each question, by id."""

    @abstractmethod
    def key(self, answer: str) -> str:
        """Bring an answer to the form in which answers are counted."""

    def majority(self) -> Metrics:
        """Return the metrics of the constant answer with the best headline: what a blind model can reach."""
        counts = Counter(self.key(reference) for q in self.questions for reference in q.references)
        constants = [answer for answer, _ in counts.most_common(CANDIDATES)]
        tried = [self.score({q.id: constant for q in self.questions}) for constant in constants]
        return max(tried, key=lambda metrics: metrics[self.headline])

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


def _by_group(scored: Sequence[tuple[Question, float]]) -> Metrics:
    groups = sorted({q.group for q, _ in scored})
    return {
        "accuracy": mean([value for _, value in scored]),
        **{f"accuracy/{group}": mean([value for q, value in scored if q.group == group]) for group in groups},
    }


class VQAv2(Task):
    """Soft accuracy, overall and by answer type; `accuracy_official` follows the script's rule for equal references."""

    def score(self, predictions: Mapping[str, str]) -> Metrics:
        pairs = self.answers(predictions)
        official = mean([vqav2_score(answer, q.references, "official") for q, answer in pairs])
        return _by_group([(q, vqav2_score(a, q.references)) for q, a in pairs]) | {"accuracy_official": official}

    def key(self, answer: str) -> str:
        return vqav2_answer(answer)


class TextVQA(Task):
    """Soft accuracy, without OCR tokens in the prompt."""

    def score(self, predictions: Mapping[str, str]) -> Metrics:
        return {"accuracy": mean([textvqa_score(a, q.references) for q, a in self.answers(predictions)])}

    def key(self, answer: str) -> str:
        return textvqa_answer(answer)


class GQA(Task):
    """Exact accuracy, overall and on open (structural type query) and binary questions."""

    def score(self, predictions: Mapping[str, str]) -> Metrics:
        return _by_group([(q, gqa_score(answer, q.references[0])) for q, answer in self.answers(predictions)])

    def key(self, answer: str) -> str:
        return answer


class POPE(Task):
    """Mean over categories of F1 (headline), accuracy, precision, recall and share of yes; also each category's."""

    headline = "f1"

    def score(self, predictions: Mapping[str, str]) -> Metrics:
        pairs = self.answers(predictions)
        found = {}
        for category in sorted({q.group for q in self.questions}):
            own = [(pope_answer(answer), q.references[0]) for q, answer in pairs if q.group == category]
            found[category] = pope_metrics([answer for answer, _ in own], [label for _, label in own])
        names = list(next(iter(found.values())))
        split = {f"{name}/{category}": one[name] for category, one in found.items() for name in names}
        return {name: mean([one[name] for one in found.values()]) for name in names} | split

    def key(self, answer: str) -> str:
        return answer


# Readers


def load_task(name: str, questions: Sequence[str | Path], annotations: str | Path | None = None) -> Task:
    """Read a benchmark's official files.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: there is no such task, or a file is not what it should be; names file and question.
    """
    if name not in TASKS:
        raise ValueError(f"no task is called {name!r}; there are {', '.join(TASKS)}")
    paths = [Path(path) for path in questions]
    if not paths or (len(paths) > 1 and name != "pope"):
        raise ValueError(
            f"{name} needs {'question files' if name == 'pope' else 'one question file'}, got {len(paths)}"
        )
    if (annotations is not None) != (name == "vqav2"):
        raise ValueError(f"{name} {'needs' if name == 'vqav2' else 'has no'} annotations file")
    kind, read = TASKS[name]
    found = read(paths, None if annotations is None else Path(annotations))
    if not found:
        raise ValueError(f"{paths[0]}: no question in it")
    return kind(found)


def _need(record: Any, key: str, place: str) -> Any:
    """Get a key of a record from a file, or say what is missing where."""
    if not isinstance(record, dict) or key not in record:
        raise ValueError(f"{place}: no {key!r}; is this the benchmark's official file?")
    return record[key]


def _vqav2(paths: Sequence[Path], annotations: Path | None) -> list[Question]:
    path, content = paths[0], read_json(paths[0])
    assert annotations is not None
    noted = {}
    for one in _need(read_json(annotations), "annotations", str(annotations)):
        noted[_need(one, "question_id", str(annotations))] = one
    subset = _need(content, "data_subtype", str(path))
    found = []
    for one in _need(content, "questions", str(path)):
        number = _need(one, "question_id", str(path))
        place = f"{annotations}: question {number}"
        if number not in noted:
            raise ValueError(f"{place} of {path} has no annotation; give the annotations of the same split")
        answers = [str(_need(answer, "answer", place)) for answer in _need(noted[number], "answers", place)]
        if not answers:
            raise ValueError(f"{place} has no answer")
        image = f"COCO_{subset}_{int(one['image_id']):012d}.jpg"
        kind = str(noted[number].get("answer_type", "other"))
        found.append(Question(str(number), image, _need(one, "question", str(path)), tuple(answers), kind))
    return found


def _gqa(paths: Sequence[Path], annotations: Path | None) -> list[Question]:
    path, content = paths[0], read_json(paths[0])
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a dictionary of questions by id, as GQA's files have")
    found = []
    for identity, one in content.items():
        place = f"{path}: question {identity}"
        structural = _need(_need(one, "types", place), "structural", place)
        answer, image = str(_need(one, "answer", place)), f"{_need(one, 'imageId', place)}.jpg"
        group = "open" if structural == "query" else "binary"
        found.append(Question(identity, image, _need(one, "question", place), (answer,), group))
    return found


def _pope(paths: Sequence[Path], annotations: Path | None) -> list[Question]:
    found = []
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        category = path.stem.rpartition("_")[2]
        for number, line in enumerate(path.read_text(encoding="utf-8").rstrip("\n").split("\n"), start=1):
            place = f"{path}: line {number}"
            try:
                one = json.loads(line)
            except json.JSONDecodeError as problem:
                raise ValueError(f"{place}: not JSON ({problem}); POPE's files are JSON lines") from None
            label = _need(one, "label", place)
            if label not in ("yes", "no"):
                raise ValueError(f"{place}: label must be yes or no, got {label!r}")
            identity = f"{category}/{_need(one, 'question_id', place)}"
            found.append(Question(identity, _need(one, "image", place), _need(one, "text", place), (label,), category))
    twice = [identity for identity, count in Counter(q.id for q in found).items() if count > 1]
    if twice:
        raise ValueError(f"{paths[0]}: question {twice[0]} occurs more than once; give each category's file once")
    return found


def _textvqa(paths: Sequence[Path], annotations: Path | None) -> list[Question]:
    path, found = paths[0], []
    for one in _need(read_json(paths[0]), "data", str(paths[0])):
        identity = str(_need(one, "question_id", str(path)))
        place = f"{path}: question {identity}"
        answers = tuple(map(str, _need(one, "answers", place)))
        if len(answers) != 10:
            raise ValueError(f"{place} has {len(answers)} answers; TextVQA's metric needs exactly ten")
        image = f"{_need(one, 'image_id', place)}.jpg"
        found.append(Question(identity, image, _need(one, "question", place), answers, "all"))
    return found


Reader = Callable[[Sequence[Path], "Path | None"], list[Question]]
TASKS: dict[str, tuple[type[Task], Reader]] = {
    "vqav2": (VQAv2, _vqav2),
    "gqa": (GQA, _gqa),
    "pope": (POPE, _pope),
    "textvqa": (TextVQA, _textvqa),
}
