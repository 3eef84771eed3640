"""A study's result: a table model x task with intervals over seeds, as text, Markdown and a picture.

A study's folder holds `seed<k>/evaluate/<model>/<task>/metrics.json` as `vlmsel evaluate` writes them.

Intervals are Student's t at 95 % over seeds; differences to Random are paired by seed, because all subsets of a seed
are chosen from the same pool and tuned from the same aligned model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from scipy import stats

from vlmsel import runs

MAJORITY = "majority answer"
Values = Mapping[str, Mapping[str, Sequence[float]]]  # model -> task -> one value in percent per seed


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the half-width of its 95 % t-interval (NaN for a single value).

    >>> mean, half = interval([1.0, 2.0, 3.0])
    >>> round(mean, 3), round(half, 3)
    (2.0, 2.484)
    """
    count = len(values)
    mean = sum(values) / count
    if count < 2:
        return mean, math.nan
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    return mean, float(stats.t.ppf(0.975, count - 1)) * deviation / math.sqrt(count)


def shown(values: Sequence[float], sign: bool = False) -> str:
    """Write a mean with its interval: `71.3 ± 2.0`, or `71.3` for one seed."""
    mean, half = interval(values)
    text = f"{mean:+.1f}" if sign else f"{mean:.1f}"
    return text if math.isnan(half) else f"{text} ± {half:.1f}"


def collect(folder: Path, models: Sequence[str] = ()) -> tuple[dict[str, dict[str, list[float]]], list[str]]:
    """Read a study: headline metrics in percent per model, task and seed, and its tasks; `models` come first, in order.

    The first row is the best constant answer of each benchmark.

    Raises:
        ValueError: there is no evaluation, or a model was not evaluated on every task and seed.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for path in sorted(folder.glob("seed*/evaluate/*/*/metrics.json")):
        task, model, seed = path.parts[-2], path.parts[-3], path.parts[-5]
        metrics = runs.read_json(path)
        for name, kind in ((model, "metrics"), (MAJORITY, "majority")):
            found.setdefault(name, {}).setdefault(task, {})[seed] = 100 * metrics[kind][metrics["headline"]]
    if not found:
        raise ValueError(f"{folder}: no seed*/evaluate/<model>/<task>/metrics.json in it; run the study first")
    tasks, seeds = list(found[MAJORITY]), {seed for row in found[MAJORITY].values() for seed in row}
    order = [MAJORITY, *(m for m in models if m in found), *(m for m in found if m not in (MAJORITY, *models))]
    for name in order:
        lacking = [f"{seed}/{task}" for task in tasks for seed in sorted(seeds - set(found[name].get(task, {})))]
        if lacking:
            raise ValueError(f"{folder}: {name} was not evaluated on {lacking[0]}; run the study to its end")
    values = {n: {task: [found[n][task][seed] for seed in sorted(seeds)] for task in tasks} for n in order}
    return values, tasks


def with_mean(values: Values, tasks: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    """Add the column `mean`: the average over tasks, per seed."""
    return {
        model: {
            **{t: list(row[t]) for t in tasks},
            "mean": [sum(one) / len(one) for one in zip(*(row[t] for t in tasks), strict=True)],
        }
        for model, row in values.items()
    }


def rows(values: Values, tasks: Sequence[str], against: str = "Random") -> list[list[str]]:
    """Return the table's cells, head first: model, one column per task, their mean, and the mean's gain over
    `against`."""
    full = with_mean(values, tasks)
    columns = _columns(tasks)
    table = [["model", *columns, f"{columns[-1]} - {against}"]]
    for model, row in full.items():
        gain = (
            ""
            if against not in full or model == against
            else shown(_differences(row["mean"], full[against]["mean"]), True)
        )
        table.append([model, *(shown(row[column]) for column in columns), gain])
    return table


def _columns(tasks: Sequence[str]) -> list[str]:
    """Return what is shown: every task, and their mean where there are several."""
    return [*tasks, "mean"] if len(tasks) > 1 else list(tasks)


def _differences(one: Sequence[float], other: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(one, other, strict=True)]


def as_text(table: Sequence[Sequence[str]]) -> str:
    """Set the table in columns for a terminal."""
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def as_markdown(table: Sequence[Sequence[str]]) -> str:
    """Write the table in Markdown."""
    lines = ["| " + " | ".join(row) + " |" for row in table]
    return "\n".join([lines[0], "|" + "---|" * len(table[0]), *lines[1:]]) + "\n"


def draw(values: Values, tasks: Sequence[str], path: Path, title: str) -> None:
    """Draw one panel per task: a dot with its interval per model, dotted lines at Random and at the majority answer."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    full = with_mean(values, tasks)
    columns = _columns(tasks)
    models = [model for model in full if model != MAJORITY]
    size = (max(5, 2.5 * len(columns)), 0.42 * len(models) + 1.3)
    figure, axes = plt.subplots(1, len(columns), figsize=size, sharey=True, squeeze=False)
    for axis, column in zip(axes[0], columns, strict=True):
        for place, model in enumerate(models):
            mean, half = interval(full[model][column])
            error = None if math.isnan(half) else [[half], [half]]
            color = {"Random": "0.35", "full_pool": "0.6"}.get(model, "tab:blue")
            axis.errorbar(mean, place, xerr=error, fmt="o", color=color, capsize=3)
        axis.axvline(interval(full["Random"][column])[0], color="0.35", linestyle=":", linewidth=1)
        axis.set_title(column, fontsize=10)
        axis.grid(axis="x", alpha=0.3)
        axis.set_yticks(range(len(models)), models)
        axis.invert_yaxis() if axis is axes[0, 0] else None
    figure.supxlabel("accuracy in % (POPE: F1)", fontsize=9)
    figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
