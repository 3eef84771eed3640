"""One model on one benchmark: ask what is not answered yet, then compute what is reported."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vlmsel.data.images import find_image, require_folder
from vlmsel.evaluation.engines.base import Ask, Engine, about
from vlmsel.evaluation.engines.huggingface import ClassifierEngine
from vlmsel.evaluation.harness import Responder, answer_all
from vlmsel.evaluation.task import Answers, Asked, Task
from vlmsel.evaluation.text.prompts import continuation
from vlmsel.evaluation.text.tasks import ChoiceTask, GlueTask
from vlmsel.evaluation.visual.protocols import Protocol
from vlmsel.evaluation.visual.tasks import PopeLogit, VisualTask

FORMAT = 2  # of metrics.json


def asked_of(task: Task, protocol: Protocol) -> Asked:
    """Return what a task asks; text tasks have prompts of their own."""
    if isinstance(task, VisualTask):
        return task.asked(protocol)
    assert isinstance(task, ChoiceTask | GlueTask)
    return task.asked()


def require_images(task: VisualTask, images: Path) -> None:
    """Find every question's image before the first is asked, which may be hours before the last.

    Raises:
        FileNotFoundError: the folder, or an image in it, is missing; names the question and says how many lack theirs.
        ValueError: an image lies outside the folder.
    """
    require_folder(images)
    faults = []
    for question in task.questions:
        try:
            with about(Ask(question.id, "", images, question.image)):
                find_image(images, question.image)
        except ValueError as fault:
            faults.append(str(fault))
    if faults:
        more = f" ({len(faults)} of {len(task.questions)} questions have no usable image)" if len(faults) > 1 else ""
        raise ValueError(faults[0] + more)


def answer_task(
    task: Task, engine: Engine, protocol: Protocol, images: Path, path: Path, batch_size: int, max_new_tokens: int
) -> dict[str, Any]:
    """Answer a task's questions into `path` and return all answers by question id.

    Raises:
        ValueError: the engine cannot do this task, a question cannot be asked, or no answer has any text.
    """
    asked = asked_of(task, protocol)
    responder = _responder(task, engine, asked, images, max_new_tokens)
    if task.answer != "text":
        responder = _finite(responder)
    answers = answer_all(asked, responder, path, task.answer, batch_size, by_image(task))
    if task.answer == "text" and not any(answers.values()):
        raise ValueError(
            f"all {len(answers)} answers in {path} are empty: the model ends before it says anything; was it trained "
            "with this template and prompt (--protocol, --template)?"
        )
    return answers


def by_image(task: Task) -> Callable[[str], Any] | None:
    """Return the order in which questions about one image follow each other, so that a batch reads it once."""
    if not isinstance(task, VisualTask):
        return None
    keys = {question.id: (question.image, len(question.text)) for question in task.questions}
    return lambda identity: keys[identity]


def _responder(task: Task, engine: Engine, asked: Asked, images: Path, max_new_tokens: int) -> Responder[Any]:
    if isinstance(task, VisualTask):
        asks = {q.id: Ask(q.id, asked[q.id]["prompt"], images, q.image) for q in task.questions}

        def prepare(ids: Sequence[str]) -> Any:
            return engine.prepare([asks[identity] for identity in ids])

        if isinstance(task, PopeLogit):
            return Responder(prepare, lambda batch: engine.first_words(batch, task.spellings), engine.ahead)
        return Responder(prepare, lambda batch: engine.generate(batch, max_new_tokens), engine.ahead)
    if isinstance(engine, ClassifierEngine) and isinstance(task, GlueTask):
        return Responder(lambda ids: [asked[i]["texts"] for i in ids], engine.classify)
    return Responder(lambda ids: [asked[i] for i in ids], lambda lines: _likelihoods(engine, lines))


def _finite(responder: Responder[Any]) -> Responder[Any]:
    """Refuse scores that are no numbers: compared with another, NaN would count as an answer."""

    def respond(batch: tuple[Sequence[str], Any]) -> Sequence[Any]:
        ids, prepared = batch
        found = responder.respond(prepared)
        bad = [i for i, scores in enumerate(found) if not all(map(math.isfinite, scores))]
        if bad:
            raise ValueError(
                f"question {ids[bad[0]]}: the model's scores are {found[bad[0]]} (such are those of {len(bad)} of the "
                f"batch's {len(ids)} questions); look at the model's weights, or try --dtype float32"
            )
        return found

    return Responder(lambda ids: (ids, responder.prepare(ids)), respond, responder.ahead)


def _likelihoods(engine: Engine, lines: Sequence[dict[str, Any]]) -> list[list[float]]:
    """Score every choice of several questions at once."""
    pairs = [(line["prompt"], continuation(choice)) for line in lines for choice in line["choices"]]
    values = iter(engine.loglikelihoods(pairs))
    return [[next(values) for _ in line["choices"]] for line in lines]


def how_asked(task: Task, engine: Engine, protocol: Protocol, max_new_tokens: int) -> dict[str, Any]:
    """Return how a model's answers come about: prompt, template, image handling, decoding."""
    about: dict[str, Any] = {"model": engine.kind, **engine.about}
    if isinstance(task, PopeLogit):
        return {**about, "prompt": protocol.name, "decoding": "probabilities of the first token"}
    if isinstance(task, VisualTask):
        return {**about, "prompt": protocol.name, "decoding": "greedy", "max_new_tokens": max_new_tokens}
    if isinstance(engine, ClassifierEngine):
        own = {"prompt": "the texts alone", "decoding": "class with the highest logit"}
    else:
        own = {"prompt": "lm-evaluation-harness", "decoding": "log-likelihoods"}
    return {**about, **own, "template": "none", "image_mode": "none"}


def how_given(paths: Sequence[str]) -> dict[str, Any]:
    """Return what is known of answers that lie in files: where."""
    unknown = dict.fromkeys(
        ("model", "prompt", "template", "image_mode", "decoding"), "unknown, the answers were given"
    )
    return {**unknown, "predictions": list(paths)}


def result(name: str, task: Task, answers: Answers, protocol: dict[str, Any]) -> dict[str, Any]:
    """Return what `metrics.json` holds: metrics, standard errors, the blind baseline, and how they came about."""
    constant, majority = task.majority()
    found: dict[str, Any] = {
        "format": FORMAT,
        "task": name,
        "questions": len(task.ids),
        "groups": dict(task.groups),
        "protocol": {**protocol, **task.rules},
        "headline": task.headline,
        "metrics": task.score(answers),
        "standard_errors": {k: error if is_known(error) else None for k, error in task.errors(answers).items()},
        "majority": majority,
        "majority_answer": constant,
        "notes": task.notes,
    }
    if task.answer == "text":
        found["empty_answers"] = sum(not answers[identity].strip() for identity in task.ids)
    return found


def summary(found: dict[str, Any]) -> str:
    """Say a result in one line: the metrics of the whole with their standard errors, in percent, and the baseline."""
    shown = [_metric(name, found) for name, value in found["metrics"].items() if _is_whole(name, value)]
    headline = found["headline"]
    blind = f"best constant answer, {found['majority_answer']!r}: {headline} {100 * found['majority'][headline]:.1f}"
    empty = [f"{found['empty_answers']} of the answers empty"] if found.get("empty_answers") else []
    more = "; ".join([blind, *_undefined(found), *empty, *found["notes"]])
    return f"{found['task']}: {', '.join(shown)} on {found['questions']} questions ({more})"


def is_known(error: float | None) -> bool:
    """Tell whether there is a standard error; a single question has none."""
    return error is not None and not math.isnan(error)


def _undefined(found: dict[str, Any]) -> list[str]:
    """Say in how many of POPE's categories the script would divide by zero."""
    share, groups = found["metrics"].get("undefined"), len(found["groups"])
    return [f"precision, recall or f1 undefined in {round(share * groups)} of {groups} categories"] if share else []


def _metric(name: str, found: dict[str, Any]) -> str:
    value, error = found["metrics"][name], found["standard_errors"].get(name)
    if name == "distribution":
        return f"{name} {value:.2f}"
    return f"{name} {100 * value:.1f}" + (f" ± {100 * error:.1f}" if is_known(error) else "")


def _is_whole(name: str, value: float | None) -> bool:
    """Tell whether a metric belongs on that line: none of a group, none that could not be computed."""
    return "/" not in name and value is not None and name != "undefined"
