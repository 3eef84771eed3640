"""A study's result: the table model x task with intervals over seeds, as text, Markdown, numbers and a picture.

The last columns are the gains over Random and, where there are such, over random samples of `choose`'s own mixture,
paired by seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmsel import runs
from vlmsel.reporting.figures import draw_results
from vlmsel.reporting.tables import as_markdown, as_text, shown
from vlmsel.studies.intervals import differences
from vlmsel.studies.study import MIXTURE, RANDOM, Values, read_errors, read_evaluations, with_mean


def show_results(folder: Path, title: str, first: Sequence[str], about: Mapping[str, Any]) -> None:
    """Write and print what a study's folder holds; models `first` come first, and `about` opens `results.json`."""
    values, tasks = read_evaluations(folder, first)
    table, seeds = result_rows(values, tasks), len(next(iter(values.values()))[tasks[0]])
    title = f"{title}, {seeds} seed{'s' if seeds > 1 else ''}"
    runs.write_json(folder / "results.json", {**about, "seeds": seeds, "percent": values})
    runs.write_text(folder / "table.md", as_markdown(table))
    draw_results(values, tasks, folder / "table.png", title, read_errors(folder) if seeds == 1 else None)
    note = "mean ± half-width of the 95 % interval over seeds" if seeds > 1 else "one seed: no intervals (--seeds 3)"
    print(f"\n{title}; accuracy in % (POPE: F1); {note}\n\n{as_text(table)}\n")
    print(f"table: {folder / 'table.md'}   picture: {folder / 'table.png'}   numbers: {folder / 'results.json'}")


def result_rows(values: Values, tasks: Sequence[str]) -> list[list[str]]:
    """Return the table's cells, head first: model, each task, their mean if they are several, and its gains."""
    full, columns = with_mean(values, tasks)
    measure, controls = columns[-1], [RANDOM, *([MIXTURE] if MIXTURE in full else [])]
    table = [["model", *columns, *(f"{measure} - {control}" for control in controls)]]
    for model, row in full.items():
        gains = [_gain(full, measure, model, control) for control in controls]
        table.append([model, *(shown(row[column]) for column in columns), *gains])
    return table


def _gain(values: Values, measure: str, model: str, control: str) -> str:
    """Return a model's gain over a control; nothing for the control itself, or where there is none."""
    if control not in values or model == control:
        return ""
    return shown(differences(values[model][measure], values[control][measure]), "+.1f")
