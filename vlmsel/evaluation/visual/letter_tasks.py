"""Questions with lettered options as tasks, MMBench and ScienceQA among them, and one's own with answers in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vlmsel.evaluation.metrics import vqa_accuracy
from vlmsel.evaluation.task import Answers
from vlmsel.evaluation.visual.answers import vqav2_answer
from vlmsel.evaluation.visual.choices import MARK, base_of, circular, letter_of, option_of
from vlmsel.evaluation.visual.gqa import gqa_answer
from vlmsel.evaluation.visual.questions import Question
from vlmsel.evaluation.visual.tasks import VisualTask, best_constant, by_group


class Lettered(VisualTask):
    """Accuracy, overall and by group; by what `reads` takes an answer for."""

    rules = {"parse": "the option's letter, or the text of one option; what fits none is wrong"}

    def reads(self, answer: str, options: Sequence[str]) -> str | None:
        """Return the letter of the option that an answer names, None where it names none."""
        return option_of(answer, options)

    def right(self, answers: Answers) -> dict[str, bool]:
        """Tell by question whether its answer names the right option."""
        return {q.id: self.reads(answer, q.choices) == q.references[0] for q, answer in self.pairs(answers)}

    def values(self, answers: Answers) -> dict[str, list[float]]:
        right = self.right(answers)
        return by_group("accuracy", [(q.group, float(right[q.id])) for q in self.questions])

    def strays(self, answers: Answers) -> tuple[str, int]:
        return "no option", sum(self.reads(answer, q.choices) is None for q, answer in self.pairs(answers))

    def constant(self) -> str:
        return best_constant(self.questions, str, lambda letter, q: float(letter == q.references[0]))


class MMBench(Lettered):
    """Accuracy over questions as they are, by category; with their rotated copies `circular`."""

    def values(self, answers: Answers) -> dict[str, list[float]]:
        right = self.right(answers)
        plain = [q for q in self.questions if int(q.id) < MARK]
        found = by_group("accuracy", [(q.group, float(right[q.id])) for q in plain])
        return {"circular": [float(one) for one in circular(right).values()], **found} if self.rotated else found

    @property
    def rotated(self) -> bool:
        """Whether there are rotated copies."""
        return any(int(question.id) >= MARK for question in self.questions)

    @property
    def headline(self) -> str:  # type: ignore[override]
        """What MMBench's board shows where the file holds the copies that it needs."""
        return "circular" if self.rotated else "accuracy"

    def unit(self, question: Question) -> str:
        return base_of(question.id)


class ScienceQA(Lettered):
    """Accuracy, overall and by subject, and of the questions with a picture, `img_accuracy`."""

    rules = {"parse": "LLaVA's: the letter alone, first ('A. ') or after 'The answer is'"}

    def reads(self, answer: str, options: Sequence[str]) -> str | None:
        return letter_of(answer, options)

    def values(self, answers: Answers) -> dict[str, list[float]]:
        right = self.right(answers)
        shown = [float(right[q.id]) for q in self.questions if q.image]
        found = super().values(answers)
        return {"accuracy": found.pop("accuracy"), **({"img_accuracy": shown} if shown else {}), **found}


class ExactMatch(VisualTask):
    """Share of answers that are one of the references, without case, blanks around it and final period."""

    rules = {"normalize": "strip, lower case, no final period, both sides; any reference is right"}

    def values(self, answers: Answers) -> dict[str, list[float]]:
        return by_group("accuracy", [(q.group, _exact(answer, q)) for q, answer in self.pairs(answers)])

    def strays(self, answers: Answers) -> tuple[str, int]:
        """Take all references for the labels where they are few, as yes and no are."""
        labels = {gqa_answer(reference) for question in self.questions for reference in question.references}
        if len(labels) > len(self.questions) / 10:
            return "", 0
        return f"none of the {len(labels)} labels", sum(gqa_answer(answers[one]) not in labels for one in self.ids)

    def constant(self) -> str:
        return best_constant(self.questions, gqa_answer, _exact)


class SoftAccuracy(VisualTask):
    """VQAv2's soft accuracy over ten references."""

    rules = {"normalize": "VQAv2's, always, both sides"}

    def values(self, answers: Answers) -> dict[str, list[float]]:
        return by_group(
            "accuracy", [(q.group, vqa_accuracy(answer, q.references)) for q, answer in self.pairs(answers)]
        )

    def constant(self) -> str:
        return best_constant(self.questions, vqav2_answer, lambda answer, q: vqa_accuracy(answer, q.references))


def _exact(answer: str, question: Question) -> float:
    return float(gqa_answer(answer) in {gqa_answer(reference) for reference in question.references})


METRICS: dict[str, Callable[[list[Question]], VisualTask]] = {
    "exact_match": ExactMatch,
    "vqa_accuracy": SoftAccuracy,
    "choice": Lettered,
}
