"""Pictures: results as dots with intervals, and curves of detection rates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from vlmsel.studies.detection import POINTS, oracle_rate
from vlmsel.studies.intervals import interval
from vlmsel.studies.study import MAJORITY, Values, with_mean

BANDS = 7  # scorers up to which curves have bands: those of more cover each other
LINES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)), (0, (9, 2)))


def draw_results(
    values: Values,
    tasks: Sequence[str],
    path: Path,
    title: str,
    errors: Mapping[str, Mapping[str, float]] | None = None,
) -> None:
    """Draw one panel per task, and one for their mean, all from one scale: a dot with its interval per model, a dotted
    line at Random. The `errors` by model and task stand in for intervals where there is one seed."""
    full, columns = with_mean(values, tasks)
    models = [model for model in full if model != MAJORITY]
    figure = Figure(figsize=(max(5, 2.5 * len(columns)), 0.42 * len(models) + 1.3))
    axes = figure.subplots(1, len(columns), sharex=True, sharey=True, squeeze=False)[0]
    for axis, column in zip(axes, columns, strict=True):
        for place, model in enumerate(models):
            mean, half = interval(full[model][column])
            half = (
                _error((errors or {}).get(model, {}), [column] if column in tasks else tasks)
                if math.isnan(half)
                else half
            )
            error = None if math.isnan(half) else [[half], [half]]
            color = {"Random": "0.35", "full_pool": "0.6"}.get(model, "tab:blue")
            axis.errorbar(mean, place, xerr=error, fmt="o", color=color, capsize=3)
        axis.axvline(interval(full["Random"][column])[0], color="0.35", linestyle=":", linewidth=1)
        axis.set_title(column, fontsize=10)
        axis.grid(axis="x", alpha=0.3)
        axis.set_yticks(range(len(models)), models)
    axes[0].invert_yaxis()
    axes[0].set_xlim(left=max(-3.0, axes[0].get_xlim()[0]))
    bars = "standard error over questions" if errors else "95 % interval over seeds"
    figure.supxlabel(f"accuracy in % (POPE: F1), ± {bars}", fontsize=9)
    figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def _error(errors: Mapping[str, float], tasks: Sequence[str]) -> float:
    """Return the standard error of a mean over tasks, NaN where one of them has none."""
    return math.sqrt(sum(errors.get(task, math.nan) ** 2 for task in tasks)) / len(tasks)


def draw_rates(curves: Mapping[str, Sequence[Sequence[float]]], wrong: float, path: Path, title: str) -> None:
    """Draw each scorer's rt(p), with its band over seeds where they are few, and random inspection and an oracle.

    `curves` hold, per scorer and seed, the share found at `POINTS` shares inspected; `wrong` is the share of samples
    that are wrong, which the oracle finds first.
    """
    inspected = np.linspace(0, 100, POINTS)
    figure = Figure(figsize=(8.5, 5.2))
    axis = figure.subplots()
    axis.plot(inspected, 100 * oracle_rate(wrong, inspected / 100), color="0.2", linewidth=1, label="oracle")
    axis.plot(inspected, inspected, color="0.5", linewidth=1, linestyle=":", label="random inspection")
    for scorer, look in looks(list(curves)).items():
        values = 100 * np.asarray(curves[scorer])
        mean, half = values.mean(axis=0), np.array([interval(column)[1] for column in values.T.tolist()])
        axis.plot(inspected, mean, label=scorer, linewidth=1.6, **look)
        if np.isfinite(half).all() and len(curves) <= BANDS:
            low, high = (mean - half).clip(0), (mean + half).clip(max=100)
            axis.fill_between(inspected, low, high, color=look["color"], alpha=0.12, linewidth=0)
    axis.set(xlim=(0, 100), ylim=(0, 102), xlabel="inspected, highest scores first, in %")
    axis.set_ylabel("wrong labels found in %")
    axis.set_title(title[:110], fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, frameon=False, handlelength=3.5)
    figure.savefig(path, dpi=130, bbox_inches="tight")


def looks(scorers: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return colour and line of each scorer: settings of one (its name before the dot) share the colour.

    >>> looks(["TracIn", "TracIn.scaled"])["TracIn.scaled"]
    {'color': 'C0', 'linestyle': (0, (5, 1.5))}
    """
    families: dict[str, list[str]] = {}
    for scorer in scorers:
        families.setdefault(scorer.partition(".")[0], []).append(scorer)
    return {
        scorer: {"color": f"C{number % 10}", "linestyle": LINES[place % len(LINES)]}
        for number, family in enumerate(families.values())
        for place, scorer in enumerate(family)
    }


def draw_intervals(rows: Mapping[str, Mapping[str, Any]], path: Path, title: str) -> None:
    """Draw a dot with its interval, where it has one, per row of value, low and high; a dotted line at 0."""
    order = sorted(rows, key=lambda name: rows[name]["value"])
    figure = Figure(figsize=(7, 0.34 * len(order) + 1.2))
    axis = figure.subplots()
    for place, row in enumerate(rows[name] for name in order):
        axis.plot(row["value"], place, "o", color="tab:blue")
        if row["low"] is not None:
            axis.plot([row["low"], row["high"]], [place, place], color="tab:blue")
    axis.axvline(0, color="0.35", linestyle=":", linewidth=1)
    axis.set_yticks(range(len(order)), order)
    axis.grid(axis="x", alpha=0.3)
    axis.set_title(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
