"""All benchmarks by name, read from their official files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from vlmsel.data.glue import GLUE_TASKS, read_glue
from vlmsel.data.multiple_choice import TASKS as CHOICE_TASKS
from vlmsel.data.multiple_choice import read_choices
from vlmsel.evaluation.asking import PopeMode
from vlmsel.evaluation.task import Task
from vlmsel.evaluation.text.tasks import ChoiceTask, GlueTask
from vlmsel.evaluation.visual.questions import Files, read_questions
from vlmsel.evaluation.visual.tasks import GQA, POPE, PopeLogit, TextVQA, TextVQABoth, VisualTask, VQAv2

VISUAL_TASKS = ("vqav2", "gqa", "pope", "textvqa")
TASKS = (*VISUAL_TASKS, *CHOICE_TASKS, *GLUE_TASKS)


@dataclass(frozen=True)
class TaskFiles:
    """The files of one benchmark.

    Attributes:
        questions: the official question file, or a list of them (POPE has three).
        images: the folder with the benchmark's images; text tasks have none.
        annotations: the official answers, where they are a file of their own (VQAv2, PIQA's labels).
        ocr: TextVQA's OCR tokens (TextVQA_Rosetta_OCR_v0.2_val.json); with it every question is asked without and with.
        task: the benchmark, when the entry has another name.
    """

    questions: str | list[str]
    images: str | None = None
    annotations: str | None = None
    ocr: str | None = None
    task: str | None = None


SETTINGS = tuple(field.name for field in fields(TaskFiles))


def task_files(name: str, settings: Mapping[str, Any]) -> TaskFiles:
    """Read the settings of one of several benchmarks.

    Raises:
        ValueError: a setting is unknown, of another kind, or lacks.
    """
    if strange := [key for key in settings if key not in SETTINGS]:
        raise ValueError(f"tasks.{name} has no setting {strange[0]!r}; there are {', '.join(SETTINGS)}")
    for key, value in settings.items():
        several = key == "questions" and isinstance(value, list) and all(isinstance(one, str) for one in value)
        if not (isinstance(value, str) or several or (value is None and key != "questions")):
            raise ValueError(f"tasks.{name}.{key} must be text, got {value!r}")
    if "questions" not in settings:
        raise ValueError(f"tasks.{name} has no questions; name the benchmark's file")
    return TaskFiles(**settings)


def task_entries(task: str | None, tasks: Mapping[str, Any] | None, **files: Any) -> dict[str, TaskFiles]:
    """Return the benchmarks by name, given one by one (`task` and its files) or all together.

    Raises:
        ValueError: both or neither are given, or the settings of one of several are wrong.
    """
    if tasks and (task is not None or any(value is not None for value in files.values())):
        raise ValueError("give one benchmark with --task and --questions, or several with --tasks, not both")
    if tasks:
        return {name: task_files(name, settings) for name, settings in tasks.items()}
    if task is None or files["questions"] is None:
        raise ValueError("name a benchmark with --task and its file with --questions, or several with --tasks")
    return {task: TaskFiles(**files)}


def require_file(path: str) -> None:
    """Tell what is wrong with a file as a whole before a reader finds fault with its first line.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a folder, empty or compressed.
    """
    place = Path(path)
    if place.is_dir():
        raise ValueError(f"{path}: a folder; name the file in it")
    if not place.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with place.open("rb") as file:
        start = file.read(4)
    if not start:
        raise ValueError(f"{path}: the file is empty; take the official file")
    if start[:2] == b"\x1f\x8b" or start == b"PK\x03\x04":
        raise ValueError(f"{path}: a compressed file; unpack it first")


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
    if ocr is not None:
        raise ValueError(f"{name} has no file of OCR tokens; textvqa has")
    if len(paths) != 1:
        raise ValueError(f"{name} needs one question file, got {len(paths)}")
    return _choice(name, paths[0], noted) if name in CHOICE_TASKS else _glue(name, paths[0], noted)


def _visual(name: str, files: Files, pope: PopeMode) -> VisualTask:
    if name == "vqav2" and files.annotations is None and files.questions:
        raise ValueError(
            f"{files.questions[0]}: vqav2 needs an annotations file, v2_mscoco_*_annotations.json; "
            "give it as annotations"
        )
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
