"""Answer the questions of benchmarks and compute their metrics by the official rules."""

from __future__ import annotations

import gc
from typing import Any, Literal

from vlmsel import processes, progress, runs
from vlmsel.checks import check_at_least_one
from vlmsel.commands.folders import open_together
from vlmsel.evaluation import suite
from vlmsel.evaluation.asking import Asking, PopeMode
from vlmsel.evaluation.engines.base import within
from vlmsel.evaluation.engines.open import engine_of
from vlmsel.evaluation.results import table
from vlmsel.evaluation.tasks import task_entries
from vlmsel.models.open import open_subject
from vlmsel.reporting.tables import as_markdown, as_text


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
    metric: Literal["exact_match", "vqa_accuracy", "choice"] | None = None,
    predictions: str | list[str] | None = None,
    protocol: str = "llava15",
    pope_mode: PopeMode | None = None,
    template: str | None = None,
    limit: int | None = None,
    batch_size: int = 32,
    max_new_tokens: int = 128,
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
        task: vqav2, gqa, pope, textvqa, mmbench, scienceqa; qasc, hellaswag, piqa, logiqa; cola, sst2, mrpc, qqp,
            qnli, rte.
        questions: the official question file, or a list of them (POPE has three); or a file of your own, with metric.
        images: the folder with the benchmark's images; text tasks have none.
        annotations: the official answers, where they are a file of their own (VQAv2, PIQA's labels), or ScienceQA's
            pid_splits.json.
        ocr: TextVQA's OCR tokens; with them every question is asked without and with.
        models: several models by name, such as `--models.tuned runs/tune`.
        tasks: several benchmarks by name, each with questions, images, annotations, ocr and metric as here, and `task`
            where the name is not the benchmark's; in the YAML, or as '{gqa: {questions: FILE, images: DIR}, …}'.
        metric: what scores questions of your own, JSON of {"question", "answer", "image"} or records as in a pool:
            exact_match, vqa_accuracy (ten answers each) or choice (lettered options).
        predictions: score these answers (official result files, LLaVA's answer files or predictions.jsonl) instead of
            a model's.
        protocol: llava15 or prismatic ask for a single word or phrase; bare gives the question alone.
        pope_mode: text parses POPE's answers, logit compares the probabilities of yes and no; the protocol's own when
            left out.
        template: the conversation template for a Hugging Face model, when it is not its processor's own.
        limit: ask so many questions of each benchmark, drawn evenly at random, for a first look.
        batch_size: questions per batch; changes nothing but the time.
        max_new_tokens: longest answer in tokens; 128 as in LLaVA's and Prismatic's evaluations.
        dtype: float32 or bfloat16, that of the backbones.
        device: auto, cpu, cuda or cuda:<number>.
        config: the resolved configuration as text.
    """
    with processes.first_speaks():
        check_at_least_one(limit=limit)
        asking = Asking(protocol, pope_mode, batch_size, max_new_tokens)
        files = {"questions": questions, "images": images, "annotations": annotations, "ocr": ocr, "metric": metric}
        entries = task_entries(task, tasks, **files)
        sources = suite.model_sources(model, models, predictions, several=len(entries) > 1)
        suite.check_entries(entries, asking, named=bool(tasks), needs_images=not predictions)
        folder = open_together(out, config)
        benchmarks = suite.load_all(entries, asking, bool(tasks), limit, not predictions)
        if predictions:
            suite.evaluate_given(benchmarks[0], [predictions] if isinstance(predictions, str) else predictions, folder)
            progress.ended(then=f"vlmsel report {out}")
            return
        found = {}
        for label, source in sources.items():
            with within(label if models else None):
                subject = open_subject(source, device, dtype, template)
                engine, digest = engine_of(subject, template, source), subject.digest()
                if models or tasks:
                    found[label] = suite.evaluate_all(engine, benchmarks, asking, folder / label, digest)
                else:
                    suite.evaluate(engine, benchmarks[0], asking, folder, digest)
            del subject, engine
            gc.collect()  # one model at a time in memory
        if found and processes.is_main():
            rows, path = table(found), folder / "table.md"
            runs.write_text(path, as_markdown(rows))
            print(f"\nin %, ± standard error over questions\n\n{as_text(rows)}\n")
            progress.ended(f"table: {path}")
        progress.ended(then=f"vlmsel report {out}")
