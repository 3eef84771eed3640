"""Answer the questions of benchmarks and compute their metrics by the official rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmsel import processes, runs
from vlmsel.commands.inputs import open_engine
from vlmsel.commands.result_table import as_markdown, as_text
from vlmsel.evaluation.engine import Engine
from vlmsel.evaluation.protocols import PopeMode, Protocol, find_protocol
from vlmsel.evaluation.result_files import read_results, write_results
from vlmsel.evaluation.run import answer_task, require_images, result, summary
from vlmsel.evaluation.task import Task
from vlmsel.evaluation.tasks import load_task
from vlmsel.evaluation.vqa_tasks import VisualTask


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


@dataclass(frozen=True)
class _Loaded:
    """A benchmark that was read, and what its answers depend on beside the model."""

    name: str
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
    tasks: dict[str, TaskFiles] | None = None,
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
        tasks: several benchmarks by name, each with the settings above.
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
    way = find_protocol(protocol)
    if min(batch_size, max_new_tokens) < 1:
        raise ValueError(f"batch_size and max_new_tokens must be at least 1, got {batch_size} and {max_new_tokens}")
    entries = _entries(task, tasks, questions=questions, images=images, annotations=annotations, ocr=ocr)
    sources = _sources(model, models, predictions, entries)
    folder = _open(out, config)
    loaded = [
        _load(name, files, way, pope_mode or way.pope, batch_size, max_new_tokens) for name, files in entries.items()
    ]
    if predictions is not None:
        _score_file(loaded[0], [predictions] if isinstance(predictions, str) else predictions, folder)
        return
    found = {}
    for label, source in sources.items():
        engine = open_engine(source, device, dtype, template)
        for one in loaded:
            found[label, one.name] = _run(engine, one, folder / label / one.name if models or tasks else folder)
    if (models or tasks) and processes.is_main():
        _show(found, folder)


def _entries(task: str | None, tasks: Mapping[str, TaskFiles] | None, **files: Any) -> dict[str, TaskFiles]:
    """Return the benchmarks by name, given one by one or all together."""
    if tasks and (task is not None or any(value is not None for value in files.values())):
        raise ValueError("give one benchmark with --task and --questions, or several with --tasks, not both")
    if tasks:
        return dict(tasks)
    if task is None or files["questions"] is None:
        raise ValueError("name a benchmark with --task and its file with --questions, or several with --tasks")
    return {task: TaskFiles(**files)}


def _sources(
    model: str | None, models: Mapping[str, str] | None, predictions: Any, entries: Mapping[str, TaskFiles]
) -> dict[str, str]:
    """Return the models by name; none where answers are given."""
    given = [name for name, value in (("model", model), ("models", models), ("predictions", predictions)) if value]
    if len(given) != 1:
        raise ValueError(f"give one of --model, --models and --predictions, got {' and '.join(given) or 'none'}")
    if predictions and len(entries) > 1:
        raise ValueError("--predictions scores the answers to one benchmark; give --task instead of --tasks")
    return {"model": model} if model is not None else dict(models or {})


def _open(out: str, config: str) -> Path:
    """Open the run folder in the first process; the others follow."""
    if processes.is_main():
        runs.open_run(out, config)
    processes.wait()
    return Path(out)


def _load(
    name: str, files: TaskFiles, protocol: Protocol, pope: PopeMode, batch_size: int, max_new_tokens: int
) -> _Loaded:
    """Read a benchmark and find its images, before any model is loaded."""
    questions = [files.questions] if isinstance(files.questions, str) else files.questions
    task = load_task(files.task or name, questions, files.annotations, files.ocr, pope)
    return _Loaded(name, task, Path(files.images or ""), protocol, batch_size, max_new_tokens)


def _run(engine: Engine, one: _Loaded, folder: Path) -> dict[str, Any]:
    """Evaluate a model on a benchmark; write and print the result."""
    if isinstance(one.task, VisualTask):
        require_images(one.task, one.images)
    path, before = folder / "predictions.jsonl", engine.cut
    answers = answer_task(one.task, engine, one.protocol, one.images, path, one.batch_size, one.max_new_tokens)
    how = {"prompt": one.protocol.name, "decoding": "greedy", "max_new_tokens": one.max_new_tokens}
    own = how if isinstance(one.task, VisualTask) else {}
    found = result(one.name, one.task, answers, {**own, "model": engine.kind, **engine.about})
    if processes.is_main():
        _write(found, one.task, answers, folder)
        if engine.cut > before:
            print(f"{engine.cut - before} texts were longer than the model takes and were cut")
    return found


def _write(found: dict[str, Any], task: Task, answers: Mapping[str, Any], folder: Path) -> None:
    runs.write_json(folder / "metrics.json", found)
    if isinstance(task, VisualTask) and task.answer == "text":
        try:
            write_results(found["task"], task.questions, answers, folder)
        except ValueError as problem:  # home-made files may have ids that no server takes
            print(f"no result file for the official server: {problem}")
    print(f"{summary(found)}; {folder / 'metrics.json'}")


def _score_file(one: _Loaded, paths: list[str], folder: Path) -> None:
    """Score answers that lie in files."""
    if not isinstance(one.task, VisualTask) or one.task.answer != "text":
        raise ValueError("--predictions scores texts: vqav2, gqa, pope (--pope_mode text) and textvqa")
    answers = read_results(one.name, [Path(path) for path in paths], one.task.questions)
    found = result(one.name, one.task, answers, {"predictions": paths})
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
    return f"{100 * value:.1f}" + ("" if error is None else f" ± {100 * error:.1f}")
