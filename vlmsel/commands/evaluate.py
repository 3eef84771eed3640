"""Answer the questions of a benchmark and compute its metrics by the official rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from vlmsel import runs
from vlmsel.commands.inputs import open_model, pad_id
from vlmsel.data.batching import Collator
from vlmsel.data.dataset import Pictures, PromptEncoder
from vlmsel.data.images import require_folder
from vlmsel.data.sample import Turn
from vlmsel.evaluation.harness import SUFFIXES, answer_all
from vlmsel.evaluation.tasks import Question, load_task
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
        dtype: float32 or bfloat16, that of the backbones.
        device: auto, cpu, cuda or cuda:<number>.
        config: the resolved configuration as text.
    """
    if protocol not in SUFFIXES:
        raise ValueError(f"protocol must be one of {', '.join(SUFFIXES)}; got {protocol!r}")
    folder = runs.open_run(out, config)
    found = load_task(task, questions, annotations)
    vlm = open_model(model, device, dtype)
    vlm.require_ready()
    respond = _responder(vlm, require_folder(images), max_new_tokens)
    answers = answer_all(found.questions, respond, folder / "predictions.jsonl", protocol, batch_size)
    metrics, majority = found.score(answers), found.majority()
    result = {
        "task": task,
        "questions": len(found.questions),
        "protocol": {"prompt": protocol, "max_new_tokens": max_new_tokens, "decoding": "greedy"},
        "headline": found.headline,
        "metrics": metrics,
        "majority": majority,
    }
    runs.write_json(folder / "metrics.json", result)
    shown = ", ".join(f"{name} {100 * value:.1f}" for name, value in metrics.items() if "/" not in name)
    blind = f"best constant answer: {found.headline} {100 * majority[found.headline]:.1f}"
    print(f"{task}: {shown} on {len(found.questions)} questions ({blind}); {folder / 'metrics.json'}")


Responder = Callable[[Sequence[tuple[Question, str]]], Sequence[str]]


def _responder(model: VLM, images: Path, max_new_tokens: int) -> Responder:
    """Give the function that answers a batch of questions about pictures under `images`."""
    tower, config = model.vision, model.vlm_config
    pictures = Pictures(images, tower.image_size, config.image_mode, tower.image_mean, tower.image_std)
    encoder = PromptEncoder(model.tokenizer, config.template, pictures)
    collate = Collator(pad_id(model))

    def respond(batch: Sequence[tuple[Question, str]]) -> list[str]:
        items = []
        for number, (question, prompt) in enumerate(batch):
            try:
                items.append(encoder(number, [Turn("human", f"<image>\n{prompt}")], [question.image]))
            except (ValueError, OSError) as problem:
                raise ValueError(f"question {question.id}: {problem}") from None
        return generate(model, collate(items).to(model.device), model.tokenizer, max_new_tokens)

    return respond
