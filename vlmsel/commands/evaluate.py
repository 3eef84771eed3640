"""Answer the questions of a benchmark and compute its metrics by the official rules."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlmsel import runs
from vlmsel.commands.inputs import open_model, pad_id
from vlmsel.data.batching import Collator
from vlmsel.data.dataset import PromptEncoder
from vlmsel.evaluation.harness import answer
from vlmsel.evaluation.tasks import Question, Task, load_task
from vlmsel.models.generation import generate
from vlmsel.models.vlm import VLM


def evaluate(
    model: str,
    task: str,
    questions: list[str],
    images: str,
    out: str,
    annotations: str | None = None,
    protocol: str = "short",
    batch_size: int = 32,
    max_new_tokens: int = 16,
    limit: int | None = None,
    dtype: str = "float32",
    device: str = "auto",
    config: str = "",
) -> None:
    """Write `out/predictions.jsonl` and `out/metrics.json`; the same command goes on where it stopped.

    Args:
        model: the run folder of `vlmsel tune`, a model folder, or a preset.
        task: vqav2, gqa, pope or textvqa.
        questions: the official question files (POPE has three).
        images: the folder with the benchmark's images.
        out: the run folder.
        annotations: the official answers, where they are a file of their own (VQAv2).
        protocol: short asks for a single word or phrase, as LLaVA-1.5 does; bare gives the question alone.
        batch_size: questions per batch; changes nothing but the time.
        max_new_tokens: longest answer in tokens.
        limit: only the first so many questions, for a try.
        dtype: float32 or bfloat16, that of the backbones.
        device: auto, cpu, cuda or cuda:<number>.
        config: the resolved configuration as text.
    """
