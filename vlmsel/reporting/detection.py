"""What `vlmsel detect` shows: the table of detection rates, its picture, and the ranked list of suspects.

Scores are influences: highest = most harmful = most suspicious. Intervals are Student's t at 95 % over seeds;
differences to TracIn are paired by seed, because all scorers of a seed look at the same model and the same flips.
"""

from __future__ import annotations

import csv
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlmsel import runs
from vlmsel.data.labelled_sets import LabelledData, plain
from vlmsel.reporting.tables import as_markdown, as_text, interval, shown
from vlmsel.scoring.table import read_table
from vlmsel.studies.detection import POINTS, oracle_rate, suspicion
from vlmsel.studies.labelled_data import Drawn
from vlmsel.studies.mislabelled import SCORES, TARGET

HEADS = {
    "recall_20": "found at 20 %",
    "recall_40": "found at 40 %",
    "auc": "AUC",
    "average_precision": "average precision",
}
PAIRED = {"recall_20": "at 20 %", "auc": "AUC"}  # what is compared with TracIn
BASE = "TracIn"
FIRST = 10  # suspects on the screen
BANDS = 7  # scorers up to which the picture has bands: those of more cover each other
Seeds = Sequence[Mapping[str, Any]]  # metrics.json of each seed


def show(
    folder: Path,
    data: LabelledData,
    drawn: Sequence[Drawn],
    seeds: Seeds,
    scorers: Sequence[str],
    rank_by: str,
    flip: float,
) -> None:
    """Write results, table, picture and suspects of all seeds, and print them."""
    kinds = [kind for kind in ("detection", "agreement") if all(one[kind] for one in seeds)]
    results = collect(seeds, scorers, kinds)
    title = heading(data, seeds, flip)
    runs.write_json(folder / "results.json", {"title": title, "rank_by": rank_by, **results})
    if kinds:
        table = rows(results, scorers)
        runs.write_text(folder / "table.md", f"{title}\n\n{as_markdown(table)}\n{_note(len(seeds), results)}\n")
        print(f"\n{title}\n\n{as_text(table)}\n\n{_note(len(seeds), results)}\n")
    elif drawn[0].true is not None:
        print("no given label differs from its true one: there is nothing to find and no rate to tell")
    if "detection" in kinds:
        share = sum(one["wrong"] for one in seeds) / sum(one["train"] - one["not_scored"] for one in seeds)
        draw_rates(results["curves"], scorers, share, folder / "detection.png", title)
    suspects = rank_suspects(folder, data, drawn, rank_by)
    write_suspects(folder / "suspects.csv", suspects, data)
    _print_suspects(suspects, rank_by, len(seeds))
    made = {"table": "table.md", "picture": "detection.png", "numbers": "results.json", "suspects": "suspects.csv"}
    print("\n" + "   ".join(f"{what}: {folder / name}" for what, name in made.items() if (folder / name).is_file()))


def heading(data: LabelledData, seeds: Seeds, flip: float) -> str:
    """Say what was looked at, in one line."""
    count, wrong = seeds[0]["train"], seeds[0]["wrong"]
    what = f"{100 * flip:g} % of {count} labels flipped" if flip else f"{count} samples with their labels as given"
    what += f", {wrong} of them wrong" if wrong is not None and not flip else ""
    return f"{data.title}: {what}, {len(seeds)} seed{'s' if len(seeds) > 1 else ''}"


def collect(seeds: Seeds, scorers: Sequence[str], kinds: Sequence[str]) -> dict[str, Any]:
    """Turn the seeds' metrics into lists over seeds, with mean and half-width of the interval; fractions throughout."""
    found: dict[str, Any] = {
        "seeds": len(seeds),
        "validation": {name: [one[name] for one in seeds] for name in ("accuracy", "majority")},
        "seconds": [one["seconds"] for one in seeds],
    }
    for kind in kinds:
        found[kind] = {
            scorer: {name: [one[kind][scorer][name] for one in seeds] for name in seeds[0][kind][scorer]}
            for scorer in scorers
        }
        found[f"{kind}_mean_and_interval"] = {
            scorer: {name: _summary(values) for name, values in found[kind][scorer].items()} for scorer in scorers
        }
    if "detection" in kinds:
        found["curves"] = {scorer: [one["curves"][scorer] for one in seeds] for scorer in scorers}
    return found


def _summary(values: Sequence[float | None]) -> list[float | None]:
    """Return mean and half-width; None, as JSON has no NaN, where a correlation is not defined or for one seed."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return [None, None]
    mean, half = interval(known)
    return [mean, None if math.isnan(half) else half]


def rows(results: Mapping[str, Any], scorers: Sequence[str]) -> list[list[str]]:
    """Return the table's cells, head first: one row per scorer, percent but for correlations."""
    detection, agreement = results.get("detection"), results.get("agreement")
    paired = PAIRED if detection and BASE in scorers and len(scorers) > 1 else {}
    head = ["scorer"]
    if detection:
        head += [*HEADS.values(), *(f"{name} - {BASE}" for name in paired.values())]
    if agreement:
        head += ["Pearson with Exact", "Spearman with Exact"]
    table = [head]
    for scorer in scorers:
        row = [scorer]
        if detection:
            row += [shown(_percent(detection[scorer][name])) for name in HEADS]
            row += ["" if scorer == BASE else shown(_gains(detection, scorer, name), True) for name in paired]
        if agreement:
            row += [_decimals(agreement[scorer][name]) for name in ("pearson", "spearman")]
        table.append(row)
    return table


def _percent(values: Sequence[float]) -> list[float]:
    return [100 * value for value in values]


def _gains(detection: Mapping[str, Any], scorer: str, name: str) -> list[float]:
    pairs = zip(detection[scorer][name], detection[BASE][name], strict=True)
    return [100 * (one - base) for one, base in pairs]


def _decimals(values: Sequence[float | None]) -> str:
    """Write a correlation: `0.912 ± 0.004`."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "undefined"
    mean, half = interval(known)
    return f"{mean:.3f}" if math.isnan(half) else f"{mean:.3f} ± {half:.3f}"


def _note(seeds: int, results: Mapping[str, Any]) -> str:
    note = "Mean ± half-width of the 95 % interval over seeds." if seeds > 1 else "One seed: no intervals (--seeds 3)."
    if "detection" in results:
        note = f"Percent of the wrong labels found among the highest scores (highest = most harmful). {note}"
    learnt = results["validation"]
    return f"{note} Validation accuracy {shown(_percent(learnt['accuracy']))} %, largest class " + (
        f"{shown(_percent(learnt['majority']))} %."
    )


# The picture


def draw_rates(
    curves: Mapping[str, Sequence[Sequence[float]]], scorers: Sequence[str], wrong: float, path: Path, title: str
) -> None:
    """Draw rt(p) of each scorer, with its band over seeds where they are few, and random inspection and an oracle.

    Settings of one scorer (what is before the dot of its name) share a colour and differ in their lines.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    inspected = np.linspace(0, 100, POINTS)
    figure, axis = plt.subplots(figsize=(8.5, 5.2))
    axis.plot(inspected, 100 * oracle_rate(wrong, inspected / 100), color="0.2", linewidth=1, label="oracle")
    axis.plot(inspected, inspected, color="0.5", linewidth=1, linestyle=":", label="random inspection")
    for scorer, look in looks(scorers).items():
        values = 100 * np.asarray(curves[scorer])
        axis.plot(inspected, values.mean(axis=0), label=scorer, linewidth=1.6, **look)
        half = np.array([interval(column)[1] for column in values.T.tolist()])
        if np.isfinite(half).all() and len(scorers) <= BANDS:
            low, high = values.mean(axis=0) - half, values.mean(axis=0) + half
            axis.fill_between(inspected, low.clip(0), high.clip(max=100), color=look["color"], alpha=0.12, linewidth=0)
    axis.set(xlim=(0, 100), ylim=(0, 102), xlabel="inspected, highest scores first, in %")
    axis.set_ylabel("wrong labels found in %")
    axis.set_title(title[:110], fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, frameon=False, handlelength=3.5)
    figure.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(figure)


def looks(scorers: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return colour and line of each scorer.

    >>> looks(["TracIn", "TracIn.scaled"])["TracIn.scaled"]
    {'color': 'C0', 'linestyle': (0, (5, 1.5))}
    """
    styles: list[Any] = ["-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)), (0, (9, 2))]
    families: dict[str, list[str]] = {}
    for scorer in scorers:
        families.setdefault(scorer.partition(".")[0], []).append(scorer)
    return {
        scorer: {"color": f"C{number % 10}", "linestyle": styles[place % len(styles)]}
        for number, family in enumerate(families.values())
        for place, scorer in enumerate(family)
    }


# The list


@dataclass(frozen=True)
class Suspect:
    """A training sample with a given label: how suspicious it is, over the seeds that scored it with this label."""

    uid: int
    given: str
    true: str | None
    suspicion: float  # mean share of the other samples with a lower score
    score: float  # mean influence
    seeds: int
    texts: tuple[str, ...]


def rank_suspects(folder: Path, data: LabelledData, drawn: Sequence[Drawn], scorer: str) -> list[Suspect]:
    """Rank samples, most suspicious first, by the mean over seeds of the share of samples that their score is above.

    A sample whose label is flipped in one seed and not in another is two entries.
    """
    found: dict[tuple[int, str], list[tuple[float, float]]] = {}
    truths: dict[tuple[int, str], str | None] = {}
    for seed, one in enumerate(drawn):
        columns, _ = read_table(folder / f"seed{seed}" / SCORES)
        scores = np.array([columns[f"{scorer}/{TARGET}"][sample.uid] for sample in one.train])
        scored, given = np.flatnonzero(np.isfinite(scores)), one.given
        for place, rank in zip(scored.tolist(), suspicion(scores[scored]).tolist(), strict=True):
            key = one.train[place].uid, given[place]
            found.setdefault(key, []).append((rank, float(scores[place])))
            truths[key] = None if one.true is None else one.true[place]
    texts = {sample.uid: sample.said("human") for sample in data.train.samples}
    suspects = [
        Suspect(
            uid,
            given,
            truths[uid, given],
            sum(rank for rank, _ in seen) / len(seen),
            sum(score for _, score in seen) / len(seen),
            len(seen),
            texts[uid],
        )
        for (uid, given), seen in found.items()
    ]
    return sorted(suspects, key=lambda one: (-one.suspicion, -one.score, one.uid))


def write_suspects(path: Path, suspects: Sequence[Suspect], data: LabelledData) -> None:
    """Write the list as CSV; `true_label` only where it is known."""
    known = any(one.true is not None for one in suspects)
    head = ["rank", "uid", "given_label", *(["true_label"] if known else []), "suspicion", "score", "seeds"]
    with runs.atomic_path(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*head, *data.train.text_names])
        for rank, one in enumerate(suspects, 1):
            truth = [one.true] if known else []
            numbers = [f"{one.suspicion:.6f}", f"{one.score:.6g}", one.seeds]
            writer.writerow([rank, one.uid, one.given, *truth, *numbers, *one.texts])


def _print_suspects(suspects: Sequence[Suspect], rank_by: str, seeds: int) -> None:
    """Print the first of the list, cut to the terminal's width."""
    width = shutil.get_terminal_size((100, 24)).columns
    over = f", mean over {seeds} seeds" if seeds > 1 else ""
    print(f"most suspicious labels by {rank_by}{over} (score: influence, highest = most harmful):\n")
    known = any(one.true is not None for one in suspects)
    table = [["rank", "uid", "given", *(["true"] if known else []), "score"]]
    for rank, one in enumerate(suspects[:FIRST], 1):
        truth = [plain(one.true or "")[:24]] if known else []
        table.append([str(rank), str(one.uid), plain(one.given)[:24], *truth, f"{one.score:.3g}"])
    lines = as_text(table).split("\n")
    texts = ["text", "", *(plain(" | ".join(one.texts)) for one in suspects[:FIRST])]
    for line, text in zip(lines, texts, strict=True):
        full = f"{line}  {text}"
        print(full if len(full) <= width else full[: width - 1] + "…")
