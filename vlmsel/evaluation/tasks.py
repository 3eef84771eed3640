"""All benchmarks by name, read from their official files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from vlmsel.checks import check_choice
from vlmsel.data.glue import GLUE_TASKS, GlueExample, read_glue
from vlmsel.data.multiple_choice import TASKS as CHOICE_TASKS
from vlmsel.data.multiple_choice import read_choices
from vlmsel.evaluation.asking import PopeMode
from vlmsel.evaluation.task import Task, TaskFiles
from vlmsel.evaluation.text.tasks import ChoiceTask, GlueTask
from vlmsel.evaluation.visual.letter_tasks import METRICS, MMBench, ScienceQA
from vlmsel.evaluation.visual.mmbench import read_mmbench
from vlmsel.evaluation.visual.own import read_own
from vlmsel.evaluation.visual.questions import Question, read_questions
from vlmsel.evaluation.visual.scienceqa import read_scienceqa
from vlmsel.evaluation.visual.tasks import GQA, POPE, PopeLogit, TextVQA, TextVQABoth, VisualTask, VQAv2

VISUAL_TASKS = ("vqav2", "gqa", "pope", "textvqa")
LETTERED: dict[str, tuple[Callable[[TaskFiles], list[Question]], Callable[[list[Question]], VisualTask]]] = {
    "mmbench": (read_mmbench, MMBench),
    "scienceqa": (read_scienceqa, ScienceQA),
}
TASKS = (*VISUAL_TASKS, *LETTERED, *CHOICE_TASKS, *GLUE_TASKS)
OWN = "own questions"  # the kind of a file that is scored by a metric of `METRICS`
# Which benchmarks have files beside their questions; what choices have is known to their reader.
OWN_FILES = {
    "images": ("images", (*VISUAL_TASKS, "scienceqa", OWN)),
    "annotations": ("annotations file", ("vqav2", "scienceqa", *CHOICE_TASKS)),
    "ocr": ("file of OCR tokens", ("textvqa",)),
}
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
    if task is None and files["metric"] and (paths := TaskFiles(files["questions"] or ()).paths):
        task = paths[0].stem
    if task is None or files["questions"] is None:
        raise ValueError(
            "name a benchmark with --task and its file with --questions, or several with --tasks; questions of "
            f"your own need --questions and --metric, one of {', '.join(METRICS)}"
        )
    return {task: TaskFiles(**files)}


def require_file(path: str | Path) -> None:
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


def check_files(name: str, files: TaskFiles, needs_images: bool = False) -> None:
    """Refuse files that a benchmark lacks or has no use for, before any is read.

    Raises:
        ValueError: there is no such task, or its files are too many or too few.
    """
    if files.metric is not None:
        check_choice(tuple(METRICS), metric=files.metric)
        if name in TASKS:
            raise ValueError(f"{name} has metrics of its own; leave metric ({files.metric}) out, or take another name")
        name = OWN
    elif name not in TASKS:
        raise ValueError(
            f"no task is called {name!r}; there are {', '.join(TASKS)}; set task to one of them, or metric to one of "
            f"{', '.join(METRICS)} for questions of your own"
        )
    count, several = len(files.paths), name == "pope"
    if not count or (count > 1 and not several):
        raise ValueError(f"{name} needs {'question files' if several else 'one question file'}, got {count}")
    for setting, (what, tasks) in OWN_FILES.items():
        if (given := getattr(files, setting)) is not None and name not in tasks:
            raise ValueError(f"{name} has no {what}; leave {setting} ({given}) out")
    if files.annotations is None and name == "vqav2":
        raise ValueError("vqav2 needs an annotations file, v2_mscoco_*_annotations.json; give it as annotations")
    if files.annotations is None and name == "scienceqa":
        raise ValueError("scienceqa needs pid_splits.json, which lies beside problems.json; give it as annotations")
    if files.images is None and name in (*VISUAL_TASKS, "scienceqa") and needs_images:
        raise ValueError(f"{name} asks about images; give the folder that they are in as images")


def load_task(name: str, files: TaskFiles, pope: PopeMode = "text") -> Task:
    """Read the official files of one of `TASKS`; `pope` says how POPE's answers are read.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: there is no such task, files are too many or too few, or one is not what it should be; names file
            and question.
    """
    check_files(name, files)
    for file in (*files.paths, files.annotations, files.ocr):
        if file is not None:
            require_file(file)
    if files.metric is not None:
        return METRICS[files.metric](read_questions(name, files, read_own))
    if name in LETTERED:
        read, kind = LETTERED[name]
        return kind(read_questions(name, files, read))
    if name in VISUAL_TASKS:
        questions = read_questions(name, files)
        if name == "textvqa":
            return TextVQA(questions) if files.ocr is None else TextVQABoth(questions)
        if name == "pope":
            return PopeLogit(questions) if pope == "logit" else POPE(questions)
        return GQA(questions) if name == "gqa" else VQAv2(questions)
    (path,) = files.paths
    task: ChoiceTask | GlueTask
    if name in CHOICE_TASKS:
        task = ChoiceTask(name, choices := read_choices(name, path, files.annotations))
        labels = [question.answer for question in choices]
    else:
        rows = read_glue(name, path)
        examples = [row for _, row in rows if isinstance(row, GlueExample)]
        task, labels = GlueTask(name, examples, len(rows) - len(examples)), [example.label for example in examples]
    if lacking := labels.count(None):
        raise ValueError(
            f"{path}: {lacking} of {len(labels)} questions have no label; test labels are not public, take the "
            "validation file (PIQA's labels are a file of their own: --annotations)"
        )
    return task
