"""Models on benchmarks: files are read and checked first, then a model is asked and what it is worth is written.

    entries (the files of benchmarks, by name) -> load -> Benchmark -> evaluate, of an engine -> result

Each result lies in a folder of its own: `predictions.jsonl`, `metrics.json` and the official servers' result files.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlmsel import processes, progress, runs
from vlmsel.evaluation.asking import Asking
from vlmsel.evaluation.engines.base import Engine, within
from vlmsel.evaluation.harness import answer_all
from vlmsel.evaluation.results import Result, how_given, result, summary
from vlmsel.evaluation.task import Answers, Task, TaskFiles
from vlmsel.evaluation.tasks import OWN, check_files, load_task, require_file
from vlmsel.evaluation.visual.answer_files import SHAPES, read_results
from vlmsel.evaluation.visual.result_files import write_results
from vlmsel.evaluation.visual.tasks import VisualTask


@dataclass(frozen=True)
class Benchmark:
    """A benchmark that was read: the name of its results, which of `TASKS` it is, the folder of its images, and digests
    of what answers depend on beside what is asked."""

    name: str
    kind: str
    task: Task
    images: Path
    inputs: Mapping[str, str]


# Before a model is loaded


def require_folder_name(name: str) -> None:
    """Refuse the name of a model or a task that leads out of the run folder."""
    if not name or name != Path(name).name or name == "..":
        raise ValueError(f"{name!r} cannot be the name of a folder of results; take a name without slashes")


def model_sources(
    model: str | None, models: Mapping[str, str] | None, predictions: Any, several: bool
) -> dict[str, str]:
    """Return the models by name, none where predictions are given, which answer one benchmark and not several.

    Raises:
        ValueError: not exactly one of the three is given, or a name is none of a folder.
    """
    given = [name for name, value in (("model", model), ("models", models), ("predictions", predictions)) if value]
    if len(given) != 1:
        raise ValueError(f"give one of --model, --models and --predictions, got {' and '.join(given) or 'none'}")
    if predictions and several:
        raise ValueError("--predictions scores the answers to one benchmark; give --task instead of --tasks")
    for name in models or {}:
        require_folder_name(name)
    return {"model": model} if model is not None else dict(models or {})


def check_entries(entries: Mapping[str, TaskFiles], asking: Asking, named: bool, needs_images: bool) -> None:
    """Refuse settings that a benchmark lacks, or has no use for, before any file is read; a fault is `named`.

    Raises:
        ValueError: says which entry and setting.
    """
    for name, files in entries.items():
        require_folder_name(name)
        with within(name if named else None):
            check_files(files.task or name, files, needs_images)
    if asking.pope_mode is not None and "pope" not in [files.task or name for name, files in entries.items()]:
        raise ValueError(f"pope_mode {asking.pope_mode} is for the task pope; leave it out")


def load_all(
    entries: Mapping[str, TaskFiles],
    asking: Asking,
    named: bool = True,
    limit: int | None = None,
    needs_images: bool = True,
) -> list[Benchmark]:
    """Read benchmarks and find their images, where they are needed; a fault is `named` after its own. With a `limit`,
    so many questions of each are drawn.

    Raises:
        FileNotFoundError, ValueError: a file or an image is missing or not what it should be; names file and question.
    """
    found = []
    for name, files in entries.items():
        with within(name if named else None):
            task, images = load_task(files.task or name, files, asking.pope), Path(files.images or "")
            task = some(task, limit, name)
            inputs = {f"the questions ({path})": runs.file_hash(path) for path in files.paths}
            if isinstance(task, VisualTask) and files.images is None and needs_images and (shown := task.in_folder):
                raise ValueError(
                    f"{len(shown)} of {len(task.questions)} questions have images; name their folder as images"
                )
            if isinstance(task, VisualTask) and files.images is not None:
                task.require_images(images)
                inputs["the images"] = task.images_digest(images)
            kind = OWN if files.metric else files.task or name
            found.append(Benchmark(name, kind, task, images, inputs))
    return found


def some(task: Task, limit: int | None, name: str) -> Task:
    """Draw some of a benchmark's questions, the same ones every time; all where there are no more."""
    units = list(dict.fromkeys(map(task.unit, task.questions)))
    total = len(units)
    if limit is None or limit >= total:
        return task
    drawn = {units[i] for i in random.Random(0).sample(range(total), limit)}
    if processes.is_main():
        print(f"{name}: {limit} of {total} questions, drawn; a number of the whole benchmark needs no --limit")
    chosen = type(task.questions)(one for one in task.questions if task.unit(one) in drawn)  # type: ignore[call-arg]
    return replace(task, questions=chosen)  # type: ignore[type-var]


# With a model


def evaluate(engine: Engine, benchmark: Benchmark, asking: Asking, folder: Path, model: str) -> Result:
    """Answer a benchmark's questions in `folder`, going on from what is answered there; write and print the result.

    `model` is the digest of the engine's.

    Raises:
        ValueError: the engine cannot do this task, a question cannot be asked, no answer has any text, or the answers
            there were given by another model or to other questions.
    """
    task, before = benchmark.task, engine.cut
    runs.same_inputs(folder, {"the model": model, **benchmark.inputs})
    answers = answer_task(engine, task, asking, benchmark.images, folder / "predictions.jsonl")
    how = {"model": engine.kind, **engine.about, **task.how(engine, asking)}
    if processes.is_main() and task.answer == "text" and benchmark.kind in SHAPES:
        try:
            write_results(benchmark.kind, task.questions, answers, folder)
        except ValueError as problem:  # home-made files may have ids that no server takes
            print(f"no result file for the official server: {problem}")
    found = _report(benchmark, answers, how, folder)
    if processes.is_main() and engine.cut > before:
        print(f"{engine.cut - before} texts were longer than the model takes and were cut")
    return found


def _report(benchmark: Benchmark, answers: Answers, how: Mapping[str, Any], folder: Path) -> Result:
    """Write and print the result of answers that came about as `how` says."""
    found = result(benchmark.name, benchmark.task, answers, {"benchmark": benchmark.kind, **how})
    if processes.is_main():
        runs.write_json(folder / "metrics.json", found)
        progress.ended(f"{summary(found)}; {folder / 'metrics.json'}")
    return found


def evaluate_all(
    engine: Engine, benchmarks: Sequence[Benchmark], asking: Asking, folder: Path, model: str
) -> dict[str, Result]:
    """Evaluate a model, given with its digest, on every benchmark, in `folder/<name>`; return the results by name."""
    found = {}
    for benchmark in benchmarks:
        with within(benchmark.name):
            found[benchmark.name] = evaluate(engine, benchmark, asking, folder / benchmark.name, model)
    return found


def answer_task(engine: Engine, task: Task, asking: Asking, images: Path, path: Path) -> dict[str, Any]:
    """Answer a task's questions into `path` and return all answers by question id.

    Raises:
        ValueError: the engine cannot do this task, a question cannot be asked, or no answer has any text.
    """
    asked, responder = task.asked(asking), task.responder(engine, asking, images)
    answers = answer_all(asked, responder, path, task.answer, asking.batch_size, task.order())
    if task.answer == "text" and not any(answers.values()):
        raise ValueError(
            f"all {len(answers)} answers in {path} are empty: the model ends before it says anything; was it trained "
            "with this template and prompt (--protocol, --template)?"
        )
    return answers


def evaluate_given(benchmark: Benchmark, paths: Sequence[str], folder: Path) -> Result:
    """Score answers that lie in files; write and print the result.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the answers are no texts, or do not fit the questions.
    """
    if benchmark.task.answer != "text":
        raise ValueError("--predictions scores texts: those of tasks with images (pope with --pope_mode text)")
    for path in paths:
        require_file(path)
    answers = read_results(benchmark.kind, [Path(path) for path in paths], benchmark.task.questions)
    return _report(benchmark, answers, how_given(paths), folder)
