"""What is reported of answers: the result that `metrics.json` holds, its line for people, and its cell in a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vlmsel.evaluation.task import Answers, Task

FORMAT = 2  # of metrics.json
Result = dict[str, Any]


def how_given(paths: Sequence[str]) -> dict[str, Any]:
    """Return what is known of answers that lie in files: where."""
    names = ("model", "prompt", "template", "image_mode", "decoding")
    return {**dict.fromkeys(names, "unknown, the answers were given"), "predictions": list(paths)}


def result(name: str, task: Task, answers: Answers, protocol: Mapping[str, Any]) -> Result:
    """Return what `metrics.json` holds: metrics, standard errors, the blind baseline, and how they came about."""
    constant, majority = task.majority()
    found: Result = {
        "format": FORMAT,
        "task": name,
        "questions": len(task.ids),
        "groups": dict(task.groups),
        "protocol": {**protocol, **task.rules},
        "headline": task.headline,
        "metrics": task.score(answers),
        "standard_errors": {k: None if math.isnan(error) else error for k, error in task.errors(answers).items()},
        "majority": majority,
        "majority_answer": constant,
        "notes": task.notes,
    }
    if task.answer == "text":
        found["empty_answers"] = sum(not answers[identity].strip() for identity in task.ids)
    what, strays = task.strays(answers)
    if strays:
        found["fit_no_label"] = {what: strays}
    return found


def summary(found: Result) -> str:
    """Say a result in one line: the metrics of the whole with their standard errors, in percent, and the baseline.

    None of a group is shown, and none that could not be computed.
    """
    metrics, headline = found["metrics"], found["headline"]
    whole = [name for name, value in metrics.items() if "/" not in name and value is not None and name != "undefined"]
    shown = [f"{name} {_value(name, found)}" for name in whole]
    blind = f"best constant answer, {found['majority_answer']!r}: {headline} {100 * found['majority'][headline]:.1f}"
    empty = [f"{found['empty_answers']} of the answers empty"] if found.get("empty_answers") else []
    strays = [f"{what}: {count} of {found['questions']} answers" for what, count in _strays(found).items()]
    more = "; ".join([blind, *_undefined(found), *empty, *strays, *found["notes"]])
    return f"{found['task']}: {', '.join(shown)} on {found['questions']} questions ({more})"


def table(found: Mapping[str, Mapping[str, Result]]) -> list[list[str]]:
    """Return the cells of the table model x task, head first: headline metrics in percent with standard errors."""
    tasks = next(iter(found.values()))
    head = ["model", *(f"{name} ({one['headline']})" for name, one in tasks.items())]
    return [head, *([model, *map(_cell, own.values())] for model, own in found.items())]


def _cell(found: Result) -> str:
    strays = "".join(f" ({what}: {count} of {found['questions']})" for what, count in _strays(found).items())
    return _value(found["headline"], found) + strays


def _strays(found: Result) -> dict[str, int]:
    return found.get("fit_no_label", {})


def _value(name: str, found: Result) -> str:
    """Write a metric in percent, with its standard error where it has one; a single question has none."""
    value, error = found["metrics"][name], found["standard_errors"].get(name)
    if value is None:
        return "undefined"
    if name == "distribution":
        return f"{value:.2f}"
    return f"{100 * value:.1f}" + ("" if error is None else f" ± {100 * error:.1f}")


def _undefined(found: Result) -> list[str]:
    """Say in how many of POPE's categories the script would divide by zero."""
    share, groups = found["metrics"].get("undefined"), len(found["groups"])
    return [f"precision, recall or f1 undefined in {round(share * groups)} of {groups} categories"] if share else []
