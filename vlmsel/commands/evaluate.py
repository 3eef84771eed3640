"""Answer the questions of a benchmark and compute its metrics by the official rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vlmsel import runs
from vlmsel.commands.inputs import open_model, pad_id
from vlmsel.data.batching import Collator
from vlmsel.data.dataset import Pictures, PromptEncoder
from vlmsel.data.images import find_image, require_folder
from vlmsel.data.sample import Turn
from vlmsel.evaluation.harness import SUFFIXES, answer_all
from vlmsel.evaluation.questions import Question
from vlmsel.evaluation.tasks import load_task
from vlmsel.models.generation import generate
from vlmsel.models.vlm import VLM


def evaluate(
    model: str,
    task: str,
    questions: str | list[str],
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
        questions: the official question file, or a list of them (POPE has three).
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
    if min(batch_size, max_new_tokens) < 1:
        raise ValueError(f"batch_size and max_new_tokens must be at least 1, got {batch_size} and {max_new_tokens}")
    folder = runs.open_run(out, config)
    found = load_task(task, [questions] if isinstance(questions, str) else questions, annotations)
    _require_images(found.questions, require_folder(images))
    vlm = open_model(model, device, dtype)
    vlm.require_ready()
    respond = _responder(vlm, Path(images), max_new_tokens)
    answers = answer_all(found.questions, respond, folder / "predictions.jsonl", protocol, batch_size)
    metrics, (constant, majority) = found.score(answers), found.majority()
    result = {
        "task": task,
        "questions": len(found.questions),
        "groups": dict(sorted(Counter(question.group for question in found.questions).items())),
        "protocol": {
            "prompt": protocol,
            "max_new_tokens": max_new_tokens,
            "decoding": "greedy",
            "template": vlm.vlm_config.template,
            "image_mode": vlm.vlm_config.image_mode,
            **found.protocol,
        },
        "headline": found.headline,
        "metrics": metrics,
        "majority": majority,
        "majority_answer": constant,
    }
    runs.write_json(folder / "metrics.json", result)
    shown = ", ".join(f"{name} {100 * value:.1f}" for name, value in metrics.items() if _shown(name, value))
    blind = f"best constant answer, {constant!r}: {found.headline} {100 * majority[found.headline]:.1f}"
    print(f"{task}: {shown} on {len(found.questions)} questions ({blind}); {folder / 'metrics.json'}")


def _shown(name: str, value: float) -> bool:
    """Tell whether a metric belongs on the line printed at the end: none of a group, and no warning without cause."""
    return "/" not in name and (name != "undefined" or value > 0)


def _require_images(questions: Sequence[Question], images: Path) -> None:
    """Find every question's image before the first is asked, which may be hours before the last.

    Raises:
        FileNotFoundError, ValueError: an image is missing or lies outside the folder; names the question.
    """
    for question in questions:
        with _about(question):
            find_image(images, question.image)


@contextmanager
def _about(question: Question) -> Iterator[None]:
    """Name the question that a problem with its picture or its prompt belongs to."""
    try:
        yield
    except (ValueError, OSError) as problem:
        raise ValueError(f"question {question.id}: {problem}") from None


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
            with _about(question):
                items.append(encoder(number, [Turn("human", f"<image>\n{prompt}")], [question.image]))
        return generate(model, collate(items).to(model.device), model.tokenizer, max_new_tokens)

    return respond
