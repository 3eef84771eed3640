"""The four visual benchmarks as tasks: VQAv2, GQA, POPE (read as text or off probabilities), TextVQA."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sklearn.metrics import average_precision_score, roc_auc_score

from vlmsel.data.dataset import look_at_images
from vlmsel.data.formats.pictures import Picture
from vlmsel.data.images import find_image, image_digest, require_folder
from vlmsel.evaluation.asking import Asking
from vlmsel.evaluation.engines.base import Ask, Engine
from vlmsel.evaluation.harness import Responder
from vlmsel.evaluation.metrics import f1_error, mean, names_label, pope_metrics, textvqa_accuracy, vqa_accuracy
from vlmsel.evaluation.task import Answers, Asked, Metrics, Task
from vlmsel.evaluation.visual.answers import textvqa_answer, vqav2_answer
from vlmsel.evaluation.visual.gqa import gqa_answer, gqa_match, gqa_metrics
from vlmsel.evaluation.visual.questions import POPE_LABELS, Question

YES_NO = (("Yes", "yes"), ("No", "no"))  # models differ in the spelling they were trained with


@dataclass(frozen=True)
class VisualTask(Task, ABC):
    """A benchmark of questions about images."""

    questions: Sequence[Question]

    @property
    def groups(self) -> Mapping[str, int]:
        return dict(sorted(Counter(question.group for question in self.questions).items()))

    def asked(self, asking: Asking) -> Asked:
        return {q.id: {"prompt": asking.prompt(q.text, bool(q.choices))} for q in self.questions}

    def responder(self, engine: Engine, asking: Asking, images: Path) -> Responder[Any]:
        asks = {q.id: Ask(q.id, asking.prompt(q.text, bool(q.choices)), images, q.image) for q in self.questions}
        return Responder(
            lambda ids: engine.prepare([asks[identity] for identity in ids]),
            lambda batch: self.respond(engine, batch, asking),
            engine.ahead,
            lambda identity: bool(asks[identity].image),
        )

    def respond(self, engine: Engine, batch: Any, asking: Asking) -> Sequence[Any]:
        """Answer what the engine prepared."""
        return engine.generate(batch, asking.max_new_tokens)

    def how(self, engine: Engine, asking: Asking) -> dict[str, Any]:
        return {"prompt": asking.protocol, "decoding": "greedy", "max_new_tokens": asking.max_new_tokens}

    def order(self) -> Callable[[str], Any]:
        """Let questions about one image follow each other, so that a batch reads it once."""
        keys = {question.id: (question.image, len(question.text)) for question in self.questions}
        return lambda identity: keys[identity]

    @property
    def in_folder(self) -> list[Question]:
        """The questions whose image lies in the image folder."""
        return [question for question in self.questions if question.image and not isinstance(question.image, Picture)]

    def require_images(self, images: Path) -> None:
        """Find every question's image before the first is asked, which may be hours before the last.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: an image is missing or outside the folder; names the question and says how many lack theirs.
        """
        require_folder(images)
        faults = []
        for question in self.in_folder:
            try:
                find_image(images, question.image)
            except (ValueError, OSError) as fault:
                faults.append(f"question {question.id}: {fault}")
        if faults:
            more = f" ({len(faults)} of {len(self.questions)} questions have no usable image)"
            raise ValueError(faults[0] + (more if len(faults) > 1 else ""))

    def images_digest(self, images: Path) -> str:
        """Return the hash of the bytes of all questions' images."""
        names = [question.image for question in self.in_folder]
        return look_at_images(lambda: names, lambda name: (None, image_digest(images, name)), "comparing images")[1]

    def pairs(self, answers: Answers) -> list[tuple[Question, Any]]:
        """Pair questions with their answers."""
        return [(question, answers[question.id]) for question in self.questions]

    @abstractmethod
    def constant(self) -> str:
        """Return the answer that has the best headline when it is given to every question."""

    def majority(self) -> tuple[str, Metrics]:
        constant = self.constant()
        return constant, self.score(dict.fromkeys(self.ids, constant))


def best_constant(
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


def by_group(name: str, scored: Sequence[tuple[str, float]]) -> dict[str, list[float]]:
    """Collect values as a whole and by group."""
    found: dict[str, list[float]] = {name: [value for _, value in scored]}
    for group in sorted({group for group, _ in scored}):
        found[f"{name}/{group}"] = [value for own, value in scored if own == group]
    return found


class VQAv2(VisualTask):
    """Soft accuracy, overall and by answer type; `accuracy_official` follows the script's rule for equal references."""

    rules = {"normalize": "always (accuracy), official (accuracy_official)"}

    def values(self, answers: Answers) -> dict[str, list[float]]:
        pairs = self.pairs(answers)
        official = [vqa_accuracy(answer, q.references, "official") for q, answer in pairs]
        always = [(q.group, vqa_accuracy(answer, q.references)) for q, answer in pairs]
        return by_group("accuracy", always) | {"accuracy_official": official}

    def constant(self) -> str:
        return best_constant(self.questions, vqav2_answer, lambda answer, q: vqa_accuracy(answer, q.references))


class TextVQA(VisualTask):
    """Soft accuracy without OCR tokens in the prompt, `textvqa_pure`."""

    headline = "textvqa_pure"
    rules = {"headline": "without OCR tokens", "normalize": "always"}

    def values(self, answers: Answers) -> dict[str, list[float]]:
        return {
            f"textvqa_{group}": [textvqa_accuracy(a, q.references) for q, a in self.pairs(answers) if q.group == group]
            for group in self.groups
        }

    def constant(self) -> str:
        return best_constant(self.questions, textvqa_answer, lambda answer, q: textvqa_accuracy(answer, q.references))


class TextVQABoth(TextVQA):
    """Soft accuracy with OCR tokens in the prompt, `textvqa_ocr`, as LLaVA-1.5 has it, and without, `textvqa_pure`."""

    headline = "textvqa_ocr"
    rules = {"headline": "with OCR tokens, as LLaVA-1.5", "normalize": "always"}


class GQA(VisualTask):
    """All that GQA's script prints, over balanced questions; their entailed ones serve the consistency."""

    rules = {"normalize": "strip, lower case, no final period (LLaVA)"}

    @property
    def balanced(self) -> list[Question]:
        """The questions that count."""
        return [question for question in self.questions if question.record["isBalanced"]]

    def values(self, answers: Answers) -> dict[str, list[float]]:
        return by_group("accuracy", [(q.group, gqa_match(answers[q.id], q.references[0])) for q in self.balanced])

    def others(self, answers: Answers) -> Metrics:
        found = gqa_metrics({question.id: question.record for question in self.questions}, answers)
        return {name: value for name, value in found.items() if name not in ("accuracy", "binary", "open")}

    def constant(self) -> str:
        return best_constant(self.balanced, gqa_answer, lambda answer, q: gqa_match(answer, q.references[0]))


class POPE(VisualTask):
    """Mean over categories of F1 (headline), accuracy, precision, recall and share of yes; also each category's.

    `undefined` is the share of categories in which one of them is a division by zero.
    """

    headline = "f1"
    rules = {"parse": "official: no if the first sentence has No, no or not", "normalize": "none"}

    def others(self, answers: Answers) -> Metrics:
        found = self._found(answers)
        names = [name for name in next(iter(found.values())) if name.islower()]  # a mean of counts would say nothing
        own = {name: [one[name] for one in found.values()] for name in names}
        means = {name: mean(values) for name, values in own.items() if None not in values}
        return means | {f"{name}/{category}": value for category, one in found.items() for name, value in one.items()}

    def other_errors(self, answers: Answers) -> dict[str, float]:
        errors: dict[str, float] = {}
        for category, one in self._found(answers).items():
            right, count = one["TP"] + one["TN"], sum(one[name] for name in ("TP", "FP", "TN", "FN"))
            share = right / count
            errors[f"accuracy/{category}"] = math.sqrt(share * (1 - share) / (count - 1)) if count > 1 else math.nan
            errors[f"f1/{category}"] = f1_error(one["TP"], one["FP"] + one["FN"])
        # taken as independent; categories share their yes questions, so that the mean is a little less certain
        own = {name: [errors[f"{name}/{category}"] for category in self.groups] for name in ("accuracy", "f1")}
        means = {name: math.sqrt(sum(error**2 for error in values)) / len(values) for name, values in own.items()}
        return means | errors

    def strays(self, answers: Answers) -> tuple[str, int]:
        return "neither yes nor no", sum(not names_label(answers[identity]) for identity in self.ids)

    def constant(self) -> str:
        texts = POPE(self.questions)
        return max(POPE_LABELS, key=lambda label: texts.score(dict.fromkeys(self.ids, label))[self.headline])

    def _found(self, answers: Answers) -> dict[str, Metrics]:
        pairs = {category: [one for one in self.pairs(answers) if one[0].group == category] for category in self.groups}
        return {c: pope_metrics([a for _, a in own], [q.references[0] for q, _ in own]) for c, own in pairs.items()}


class PopeLogit(POPE):
    """POPE read off the probabilities of yes and no as first words, as Prismatic does; `auroc` and `aupr` beside it."""

    headline = "accuracy"
    answer = "logprobs"
    rules = {"parse": "the more probable of Yes/yes and No/no as first token (Prismatic)", "normalize": "none"}

    def respond(self, engine: Engine, batch: Any, asking: Asking) -> Sequence[Any]:
        return engine.first_words(batch, YES_NO)

    def strays(self, answers: Answers) -> tuple[str, int]:
        return "", 0

    def how(self, engine: Engine, asking: Asking) -> dict[str, Any]:
        return {"prompt": asking.protocol, "decoding": "probabilities of the first token"}

    def majority(self) -> tuple[str, Metrics]:
        label = self.constant()
        return label, self.score(dict.fromkeys(self.ids, [0.0, -1.0] if label == "yes" else [-1.0, 0.0]))

    def _found(self, answers: Answers) -> dict[str, Metrics]:
        words = {identity: "yes" if answers[identity][0] >= answers[identity][1] else "no" for identity in self.ids}
        return {category: one | self._curves(answers, category) for category, one in super()._found(words).items()}

    def _curves(self, answers: Answers, category: str) -> Metrics:
        pairs = [(answer, q.references[0] == "yes") for q, answer in self.pairs(answers) if q.group == category]
        truth, margin = [label for _, label in pairs], [yes - no for (yes, no), _ in pairs]
        if len(set(truth)) < 2:
            return {"auroc": None, "aupr": None}
        return {"auroc": float(roc_auc_score(truth, margin)), "aupr": float(average_precision_score(truth, margin))}
