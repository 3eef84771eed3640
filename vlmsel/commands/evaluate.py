"""Answer the questions of benchmarks and compute their metrics by the official rules."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmsel import processes, runs
from vlmsel.commands.inputs import open_engine, open_together
from vlmsel.evaluation.engines.base import Engine
from vlmsel.evaluation.run import answer_task, how_asked, how_given, is_known, require_images, result, summary
from vlmsel.evaluation.task import Task
from vlmsel.evaluation.tasks import TASKS, VISUAL_TASKS, TaskFiles, load_task, require_file, task_files
from vlmsel.evaluation.visual.protocols import PopeMode, Protocol, find_protocol
from vlmsel.evaluation.visual.result_files import read_results, write_results
from vlmsel.evaluation.visual.tasks import VisualTask
from vlmsel.reporting.tables import as_markdown, as_text

GRACE = 10.0  # seconds; what starts several processes ends the others as soon as one has failed


@dataclass(frozen=True)
class _Loaded:
    """A benchmark that was read, and what its answers depend on beside the model."""

    name: str
    benchmark: str
    task: Task
    images: Path
    protocol: Protocol
    batch_size: int
    max_new_tokens: int


def evaluate(
    out: str,
    model: str | None = None,
    task: str | None = None,
    questions: str | list[str] | None = None,
    images: str | None = None,
    annotations: str | None = None,
    ocr: str | None = None,
    models: dict[str, str] | None = None,
    tasks: dict[str, dict[str, Any]] | None = None,
    predictions: str | list[str] | None = None,
    protocol: str = "llava15",
    pope_mode: PopeMode | None = None,
    template: str | None = None,
    batch_size: int = 32,
    max_new_tokens: int = 16,
    dtype: str = "float32",
    device: str = "auto",
    config: str = "",
) -> None:
    """Write `out/predictions.jsonl`, `out/metrics.json` and the official servers' result files; a stopped run goes on.

    With `models` or `tasks` every model is evaluated on every task, in `out/<model>/<task>`, with a table in
    `out/table.md`. `accelerate launch` and `torchrun` deal the questions among processes.

    Args:
        out: the run folder.
        model: the run folder of `vlmsel tune`, a model folder (ours, or a Hugging Face image-text-to-text model, causal
            language model or sequence classifier), or a preset.
        task: vqav2, gqa, pope, textvqa; qasc, hellaswag, piqa, logiqa; cola, sst2, mrpc, qqp, qnli, rte.
        questions: the official question file, or a list of them (POPE has three).
        images: the folder with the benchmark's images; text tasks have none.
        annotations: the official answers, where they are a file of their own (VQAv2, PIQA's labels).
        ocr: TextVQA's OCR tokens; with them every question is asked without and with.
        models: several models by name, such as `--models.tuned runs/tune`.
        tasks: several benchmarks by name, each with questions, images, annotations and ocr as above, and `task` where
            the name is not the benchmark's; in the YAML, or as '{gqa: {questions: FILE, images: DIR}, …}'.
        predictions: score these answers (official result files, LLaVA's answer files or predictions.jsonl) instead of
            a model's.
        protocol: llava15 or prismatic ask for a single word or phrase; bare gives the question alone.
        pope_mode: text parses POPE's answers, logit compares the probabilities of yes and no; the protocol's own when
            left out.
        template: the conversation template for a Hugging Face model, when it is not its processor's own.
        batch_size: questions per batch; changes nothing but the time.
        max_new_tokens: longest answer in tokens.
        dtype: float32 or bfloat16, that of the backbones.
        device: auto, cpu, cuda or cuda:<number>.
        config: the resolved configuration as text.
    """
    with _first_speaks():
        way = find_protocol(protocol)
        if min(batch_size, max_new_tokens) < 1:
            raise ValueError(f"batch_size and max_new_tokens must be at least 1, got {batch_size} and {max_new_tokens}")
        entries = _entries(task, tasks, questions=questions, images=images, annotations=annotations, ocr=ocr)
        sources = _sources(model, models, predictions, entries)
        _check_entries(entries, task is not None, pope_mode, needs_images=not predictions)
        folder = open_together(out, config)
        mode = pope_mode or way.pope
        loaded = []
        for name, files in entries.items():
            with _within(name if tasks else None):
                loaded.append(_load(name, files, way, mode, batch_size, max_new_tokens))
        if predictions:
            _score_file(loaded[0], [predictions] if isinstance(predictions, str) else predictions, folder)
            return
        found = {}
        for label, source in sources.items():
            inside = folder / label if models or tasks else None
            with _within(label if models else None):
                of_model = _run_all(open_engine(source, device, dtype, template), loaded, folder, inside)
            found.update({(label, name): one for name, one in of_model.items()})
            gc.collect()  # one model at a time in memory
        if (models or tasks) and processes.is_main():
            _show(found, folder)


@contextmanager
def _first_speaks() -> Iterator[None]:
    """Let the first process tell a fault that all of them find; one that only another finds is told a bit later."""
    try:
        yield
    except (ValueError, OSError):
        if not processes.is_main():
            time.sleep(GRACE)
        raise


def _entries(task: str | None, tasks: Mapping[str, Any] | None, **files: Any) -> dict[str, TaskFiles]:
    """Return the benchmarks by name, given one by one or all together."""
    if tasks and (task is not None or any(value is not None for value in files.values())):
        raise ValueError("give one benchmark with --task and --questions, or several with --tasks, not both")
    if tasks:
        return {name: task_files(name, settings) for name, settings in tasks.items()}
    if task is None or files["questions"] is None:
        raise ValueError("name a benchmark with --task and its file with --questions, or several with --tasks")
    return {task: TaskFiles(**files)}


def _check_entries(
    entries: Mapping[str, TaskFiles], alone: bool, pope_mode: PopeMode | None, needs_images: bool
) -> None:
    """Refuse settings that a benchmark lacks, or has no use for, before any file is read."""
    benchmarks = {name: files.task or name for name, files in entries.items()}
    for name, benchmark in benchmarks.items():
        _require_folder_name(name)
        who, images = name if name == benchmark else f"{name} ({benchmark})", entries[name].images
        if benchmark not in TASKS:
            mend = "" if alone else f"; set `task` of the entry {name!r} to one of them"
            raise ValueError(f"no task is called {benchmark!r}; there are {', '.join(TASKS)}{mend}")
        if images is not None and benchmark not in VISUAL_TASKS:
            raise ValueError(f"{who} is a text task and has no images; leave images ({images}) out")
        if images is None and benchmark in VISUAL_TASKS and needs_images:
            raise ValueError(f"{who} asks about images; give the folder that they are in as images")
    if pope_mode is not None and "pope" not in benchmarks.values():
        raise ValueError(f"pope_mode {pope_mode} is for the task pope; leave it out")


def _require_folder_name(name: str) -> None:
    """Refuse the name of a model or a task that leads out of the run folder."""
    if not name or name != Path(name).name or name == "..":
        raise ValueError(f"{name!r} cannot be the name of a folder of results; take a name without slashes")


def _sources(
    model: str | None, models: Mapping[str, str] | None, predictions: Any, entries: Mapping[str, TaskFiles]
) -> dict[str, str]:
    """Return the models by name; none where answers are given."""
    given = [name for name, value in (("model", model), ("models", models), ("predictions", predictions)) if value]
    if len(given) != 1:
        raise ValueError(f"give one of --model, --models and --predictions, got {' and '.join(given) or 'none'}")
    if predictions and len(entries) > 1:
        raise ValueError("--predictions scores the answers to one benchmark; give --task instead of --tasks")
    for name in models or {}:
        _require_folder_name(name)
    return {"model": model} if model is not None else dict(models or {})


def _load(
    name: str, files: TaskFiles, protocol: Protocol, pope: PopeMode, batch_size: int, max_new_tokens: int
) -> _Loaded:
    """Read a benchmark and find its images, before any model is loaded."""
    questions = [files.questions] if isinstance(files.questions, str) else files.questions
    benchmark = files.task or name
    for path in (*questions, files.annotations, files.ocr):
        if path is not None:
            require_file(path)
    task = load_task(benchmark, questions, files.annotations, files.ocr, pope)
    if isinstance(task, VisualTask) and files.images is not None:
        require_images(task, Path(files.images))
    return _Loaded(name, benchmark, task, Path(files.images or ""), protocol, batch_size, max_new_tokens)


@contextmanager
def _within(what: str | None) -> Iterator[None]:
    """Say which of several models or benchmarks a fault belongs to."""
    try:
        yield
    except (ValueError, OSError) as problem:
        if what is None:
            raise
        raise ValueError(f"{what}: {problem}") from problem


def _run_all(engine: Engine, loaded: Sequence[_Loaded], folder: Path, inside: Path | None) -> dict[str, dict[str, Any]]:
    """Evaluate a model on every benchmark, in `inside/<task>` where there are several models or benchmarks."""
    found = {}
    for one in loaded:
        with _within(one.name if inside else None):
            found[one.name] = _run(engine, one, inside / one.name if inside else folder)
    return found


def _run(engine: Engine, one: _Loaded, folder: Path) -> dict[str, Any]:
    """Evaluate a model on a benchmark; write and print the result."""
    path, before = folder / "predictions.jsonl", engine.cut
    answers = answer_task(one.task, engine, one.protocol, one.images, path, one.batch_size, one.max_new_tokens)
    how = how_asked(one.task, engine, one.protocol, one.max_new_tokens)
    found = result(one.name, one.task, answers, {"benchmark": one.benchmark, **how})
    if processes.is_main():
        _write(found, one, answers, folder)
        if engine.cut > before:
            print(f"{engine.cut - before} texts were longer than the model takes and were cut")
    return found


def _write(found: dict[str, Any], one: _Loaded, answers: Mapping[str, Any], folder: Path) -> None:
    runs.write_json(folder / "metrics.json", found)
    if isinstance(one.task, VisualTask) and one.task.answer == "text":
        try:
            write_results(one.benchmark, one.task.questions, answers, folder)
        except ValueError as problem:  # home-made files may have ids that no server takes
            print(f"no result file for the official server: {problem}")
    print(f"{summary(found)}; {folder / 'metrics.json'}")


def _score_file(one: _Loaded, paths: list[str], folder: Path) -> None:
    """Score answers that lie in files."""
    if not isinstance(one.task, VisualTask) or one.task.answer != "text":
        raise ValueError("--predictions scores texts: vqav2, gqa, pope (--pope_mode text) and textvqa")
    for path in paths:
        require_file(path)
    answers = read_results(one.benchmark, [Path(path) for path in paths], one.task.questions)
    if processes.is_main():
        found = result(one.name, one.task, answers, {"benchmark": one.benchmark, **how_given(paths)})
        runs.write_json(folder / "metrics.json", found)
        print(f"{summary(found)}; {folder / 'metrics.json'}")


def _show(found: Mapping[tuple[str, str], dict[str, Any]], folder: Path) -> None:
    """Write and print the table model x task of headline metrics with their standard errors."""
    models, tasks = (list(dict.fromkeys(key[i] for key in found)) for i in (0, 1))
    head = ["model", *(f"{task} ({found[models[0], task]['headline']})" for task in tasks)]
    rows = [[model, *(_cell(found[model, task]) for task in tasks)] for model in models]
    runs.write_text(folder / "table.md", as_markdown([head, *rows]))
    print(f"\nin %, ± standard error over questions\n\n{as_text([head, *rows])}\n\n{folder / 'table.md'}")


def _cell(found: dict[str, Any]) -> str:
    value, error = found["metrics"][found["headline"]], found["standard_errors"].get(found["headline"])
    if value is None:
        return "undefined"
    return f"{100 * value:.1f}" + (f" ± {100 * error:.1f}" if is_known(error) else "")
