"""All benchmarks by name, read from their official files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vlmsel.data.glue import GLUE_TASKS, read_glue
from vlmsel.data.multiple_choice import TASKS as CHOICE_TASKS
from vlmsel.data.multiple_choice import read_choices
from vlmsel.evaluation.choice_tasks import ChoiceTask, GlueTask
from vlmsel.evaluation.protocols import PopeMode
from vlmsel.evaluation.questions import Files, read_questions
from vlmsel.evaluation.task import Task
from vlmsel.evaluation.vqa_tasks import GQA, POPE, PopeLogit, TextVQA, TextVQABoth, VisualTask, VQAv2

VISUAL_TASKS = ("vqav2", "gqa", "pope", "textvqa")
TASKS = (*VISUAL_TASKS, *CHOICE_TASKS, *GLUE_TASKS)


def load_task(
    name: str,
    questions: Sequence[str | Path],
    annotations: str | Path | None = None,
    ocr: str | Path | None = None,
    pope: PopeMode = "text",
) -> Task:
    """Read a benchmark's official files.

    Args:
        name: one of `TASKS`.
        questions: its question files; POPE has several.
        annotations: VQAv2's annotations, PIQA's labels.
        ocr: TextVQA's OCR tokens.
        pope: how POPE's answers are read, as text or off the probabilities of yes and no.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: there is no such task, or a file is not what it should be; names file and question.
    """
    if name not in TASKS:
        raise ValueError(f"no task is called {name!r}; there are {', '.join(TASKS)}")
    if pope not in ("text", "logit"):
        raise ValueError(f"pope_mode must be text or logit, got {pope!r}")
    paths, noted = tuple(map(Path, questions)), None if annotations is None else Path(annotations)
    if name in VISUAL_TASKS:
        return _visual(name, Files(paths, noted, None if ocr is None else Path(ocr)), pope)
    if len(paths) != 1 or ocr is not None:
        raise ValueError(f"{name} needs one question file and has no OCR tokens, got {len(paths)} files")
    return _choice(name, paths[0], noted) if name in CHOICE_TASKS else _glue(name, paths[0], noted)


def _visual(name: str, files: Files, pope: PopeMode) -> VisualTask:
    questions = read_questions(name, files)
    if name == "pope":
        return PopeLogit(questions) if pope == "logit" else POPE(questions)
    if name == "textvqa":
        return TextVQA(questions) if files.ocr is None else TextVQABoth(questions)
    return {"vqav2": VQAv2, "gqa": GQA}[name](questions)


def _choice(name: str, path: Path, labels: Path | None) -> ChoiceTask:
    questions = read_choices(name, path, labels)
    _require_labels([question.answer for question in questions], path)
    return ChoiceTask(name, questions)


def _glue(name: str, path: Path, labels: Path | None) -> GlueTask:
    if labels is not None:
        raise ValueError(f"{name} has its labels in the question file; leave --annotations out")
    file = read_glue(name, path)
    _require_labels([example.label for example in file.examples], path)
    return GlueTask(name, file.examples, len(file.skipped))


def _require_labels(labels: Sequence[int | None], path: Path) -> None:
    if lacking := labels.count(None):
        raise ValueError(
            f"{path}: {lacking} of {len(labels)} questions have no label; test labels are not public, take the "
            "validation file (PIQA's labels are a file of their own: --annotations)"
        )
