"""Sections on what came of it: the duel's verdict, results of benchmarks with intervals, and how training went."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlmsel.reporting.folders import Found, Run
from vlmsel.reporting.parts import Dots, Part, Prose, Section, Table, dots
from vlmsel.reporting.results import result_rows
from vlmsel.reporting.tables import shown
from vlmsel.reporting.validation import gain_in
from vlmsel.studies.intervals import interval
from vlmsel.studies.study import MAJORITY, with_mean
from vlmsel.studies.verdict import MIXTURE, RANDOM, held_out, said

TONES = {"better": "good", "worse": "bad"}
STUDY_NOTE = "Accuracy in % (POPE: F1); mean ± half-width of the 95 % interval over seeds, one value for one seed."
EVALUATED_NOTE = "In %, ± standard error over questions. The best constant answer says what a blind model reaches."
NO_VERDICT = (
    "No verdict: whether the choice is better than a random one here is not measured. "
    "Do so before the long training: vlmsel validate --run CHOOSE --fraction 0.01 --out DUEL"
)


def verdict_section(found: Found) -> Section:
    """Say what the duels say; where there is none, how to have one."""
    parts: list[Part] = []
    for run in found.by("validate"):
        if (result := run.json("validate.json")) is not None:
            if "rows" in result:
                parts += _retrained(run, result)
                continue
            for one in (result, *result.get("beside", ())):
                parts += _duel(run, one, result["count"])
    return Section("Verdict", parts or [Prose(NO_VERDICT, "open")])


def _duel(run: Run, result: Mapping[str, Any], count: int) -> list[Part]:
    rows, table = [], []
    for kind in (RANDOM, MIXTURE):
        gain, half = result[kind]["gain"], result[kind]["half_width"]
        ends = (gain, gain) if half is None or math.isnan(half) else (gain - half, gain + half)
        text = shown(result[kind]["per_seed"], "+.4f")
        rows.append((f"against {kind}", gain, *ends, text))
        table.append([kind, text, result[kind]["verdict"]])
    seeds = len(result[RANDOM]["per_seed"])
    note = f"{count} samples each, {seeds} seeds; {run.folder}. Above 0 the choice is better."
    sentence = said(result)
    return [
        Prose(sentence[:1].upper() + sentence[1:] + ".", TONES.get(result[RANDOM]["verdict"], "open")),
        dots(f"G{gain_in(result)[1:]} of the choice, 95 % interval", rows, mark=0.0),
        Table(f"The duel by {held_out(result)}", ["against", gain_in(result), "verdict"], table, note),
    ]


def _retrained(run: Run, result: Mapping[str, Any]) -> list[Part]:
    """Show what a study of several scorers measured."""
    rows = sorted(result["rows"].items(), key=lambda one: -one[1]["value"])
    ends = [[one["value"] if one[end] is None else one[end] for end in ("low", "high")] for _, one in rows]
    shown_rows = [
        (
            name,
            one["value"],
            low,
            high,
            f"{one['value']:+.3f}" + ("" if one["low"] is None else f" ({low:+.3f} to {high:+.3f})"),
        )
        for (name, one), (low, high) in zip(rows, ends, strict=True)
    ]
    note = f"{result['study']}: {result['measure']}, 95 % interval; trained on {result['count']} samples; {run.folder}"
    return [dots(note, shown_rows, mark=0.0)]


def results_section(found: Found) -> Section | None:
    """Show the tables of benchmarks; None where nothing was evaluated."""
    parts: list[Part] = []
    for run in found.by("demo"):
        if (result := run.json("results.json")) is not None:
            parts += _study(run, result)
    rows = [row for run in found.by("evaluate") for row in _evaluated(run)]
    if rows:
        parts += _evaluations(rows)
    return Section("Results", parts) if parts else None


def _study(run: Run, result: Mapping[str, Any]) -> list[Part]:
    values = result["percent"]
    tasks = list(values[MAJORITY])
    head, *rows = result_rows(values, tasks)
    full, columns = with_mean(values, tasks)
    parts: list[Part] = [Table(f"Accuracy per model and task, {run.folder}", head, rows, STUDY_NOTE)]
    for column in columns:
        mark = interval(full["Random"][column])[0] if "Random" in full else None
        parts.append(_chart(column, {model: row[column] for model, row in full.items() if model != MAJORITY}, mark))
    return parts


def _chart(task: str, models: Mapping[str, Sequence[float]], mark: float | None) -> Dots:
    rows = []
    for model, values in models.items():
        mean, half = interval(values)
        half = 0.0 if math.isnan(half) else half
        rows.append((model, mean, mean - half, mean + half, shown(values)))
    return dots(f"{task}, in %{'; the line is Random' if mark is not None else ''}", rows, mark)


def _evaluated(run: Run) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Give model, task and metrics of every evaluation in a run folder."""
    if (alone := run.json("metrics.json")) is not None:
        yield str(run.config.get("model") or "given answers"), alone["task"], alone
    for path in sorted(run.folder.glob("*/*/metrics.json")):
        model, task = path.parts[-3:-1]
        yield model, task, run.json(str(path.relative_to(run.folder)))


def _evaluations(rows: Sequence[tuple[str, str, Mapping[str, Any]]]) -> list[Part]:
    cells: list[list[str]] = []
    charts: dict[str, tuple[list[tuple[str, float, float, float, str]], float | None]] = {}
    for model, task, found in rows:
        name = found["headline"]
        value, error = found["metrics"][name], found["standard_errors"].get(name)
        blind = found["majority"].get(name)
        text = "undefined" if value is None else _percent(value) + ("" if error is None else f" ± {_percent(error)}")
        constant = "" if blind is None else f"{_percent(blind)} ({found['majority_answer']!r})"
        cells.append([model, task, name, text, constant, str(found["questions"]), "; ".join(found["notes"])])
        if value is not None:
            mean, half = 100 * value, 100 * (error or 0.0)
            chart = charts.setdefault(f"{task} ({name})", ([], blind))
            chart[0].append((model, mean, mean - half, mean + half, text))
    head = ["model", "task", "metric", "value", "best constant answer", "questions", "notes"]
    parts: list[Part] = [Table("Benchmarks", head, cells, EVALUATED_NOTE)]
    for name, (own, blind) in charts.items():
        mark = None if blind is None else 100 * blind
        parts.append(dots(f"{name}, in %{'' if mark is None else '; the line is the constant answer'}", own, mark))
    return parts


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def training_section(found: Found) -> Section | None:
    """Show what each training did; None where there is none."""
    rows = []
    for run in found.by("align", "warmup", "tune"):
        phase = run.json("phase.json")
        if phase is None:
            continue
        losses = [loss for loss in phase["losses"] if loss is not None]
        ends = f"{losses[0]:.4g} → {losses[-1]:.4g}" if losses else ""
        settings = phase["settings"]
        seconds = phase.get("seconds")
        rows.append(
            [
                f"{run.command} ({run.folder})",
                str(phase["samples"]),
                f"{settings['epochs']:g}",
                f"{settings['learning_rate']:g}",
                str(len(losses)),
                ends,
                "" if seconds is None else f"{seconds:.0f} s",
            ]
        )
    head = ["phase", "samples", "epochs", "learning rate", "steps", "loss, first → last", "time"]
    return Section("Training", [Table("Phases", head, rows)]) if rows else None
