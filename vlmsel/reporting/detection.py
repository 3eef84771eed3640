"""What `vlmsel detect` shows: the table of detection rates, its picture, and the ranked list of suspects.

Scores are influences: highest = most harmful = most suspicious. Intervals are Student's t at 95 % over seeds;
differences to TracIn are paired by seed, because all scorers of a seed look at the same model and the same flips.
"""

from __future__ import annotations

import csv
import math
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vlmsel import runs
from vlmsel.data.cleaned import Clean, write_cleaned
from vlmsel.data.labelled import LabelledFile, plain
from vlmsel.reporting.figures import draw_rates
from vlmsel.reporting.tables import as_markdown, as_text, shown
from vlmsel.scoring.table import read_table
from vlmsel.studies.detection import LABELS, LIKELY, SCORES, TARGET, over_seeds, suspicion
from vlmsel.studies.intervals import differences

HEADS = {
    "recall_20": "found at 20 %",
    "recall_40": "found at 40 %",
    "auc": "AUC",
    "average_precision": "average precision",
    "inspected_all": "inspected to find all",
}
PAIRED = {"recall_20": "at 20 %", "auc": "AUC"}  # what is compared with TracIn
BASE = "TracIn"
FIRST = 10  # suspects on the screen
Seeds = Sequence[Mapping[str, Any]]  # metrics.json of each seed


def show_detection(folder: Path, title: str, train: LabelledFile, seeds: Seeds, rank_by: str) -> Estimate:
    """Write results, table, picture and suspects of all seeds, and print them; return what is taken for wrong."""
    suspects = rank_suspects(folder, len(seeds), rank_by)
    estimate = estimate_wrong(seeds, suspects, over_seeds(seeds).get("out_of_fold"))
    found = {"estimate": estimate.told, "cut": None if estimate.taken is None else len(estimate.taken)}
    show_rates(folder, title, seeds, rank_by=rank_by, **found)
    texts = {sample.uid: sample.said("human") for sample in train.samples}
    write_suspects(folder / "suspects.csv", suspects, train.text_names, texts, train.ids)
    _print_suspects(suspects, rank_by, len(seeds), texts)
    made = {"table": "table.md", "picture": "detection.png", "numbers": "results.json", "suspects": "suspects.csv"}
    print("\n" + "   ".join(f"{what}: {folder / name}" for what, name in made.items() if (folder / name).is_file()))
    return estimate


def show_rates(folder: Path, title: str, seeds: Seeds, **about: Any) -> None:
    """Write the numbers of all seeds, their table and their picture, and print the table; `about` is kept beside."""
    results = over_seeds(seeds)
    runs.write_json(folder / "results.json", {"title": title, **about, **results})
    if "detection" in results or "agreement" in results:
        table, note = detection_rows(results), note_on(len(seeds), results)
        runs.write_text(folder / "table.md", f"{title}\n\n{as_markdown(table)}\n{note}\n")
        print(f"\n{title}\n\n{as_text(table)}\n\n{note}\n")
    elif seeds[0]["wrong"] is not None:
        print("no given label differs from its true one: there is nothing to find and no rate to tell")
    if "detection" in results:
        share = sum(one["wrong"] for one in seeds) / sum(one["train"] - one["not_scored"] for one in seeds)
        draw_rates(results["curves"], share, folder / "detection.png", title)


def heading(name: str, seeds: Seeds, flip: float) -> str:
    """Say what was looked at, in one line."""
    count, wrong = seeds[0]["train"], seeds[0]["wrong"]
    what = f"{100 * flip:g} % of {count} labels flipped" if flip else f"{count} samples with their labels as given"
    what += f", {wrong} of them wrong" if wrong is not None and not flip else ""
    return f"{name}: {what}, {len(seeds)} seed{'s' if len(seeds) > 1 else ''}"


def detection_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """Return the table's cells, head first: one row per scorer, percent but for correlations."""
    detection, agreement = results.get("detection", {}), results.get("agreement", {})
    shared: Mapping[str, Any] = next(iter(detection.values()), {})  # runs of earlier versions lack the last
    heads = {name: head for name, head in HEADS.items() if name in shared}
    paired = PAIRED if BASE in detection and len(detection) > 1 else {}
    correlations = ("pearson", "spearman") if agreement else ()
    table = [["scorer", *heads.values(), *(f"{name} - {BASE}" for name in paired.values())]]
    table[0] += [f"{name.capitalize()} with Exact" for name in correlations]
    for scorer in detection or agreement:
        row = [scorer, *(_percent(detection[scorer][name]) for name in heads)]
        for name in paired:
            gains = differences(detection[scorer][name], detection[BASE][name])
            row.append("" if scorer == BASE else _percent(gains, "+.1f"))
        table.append(row + [_correlation(agreement[scorer][name]) for name in correlations])
    return table


def _percent(values: Sequence[float], form: str = ".1f") -> str:
    return shown([100 * value for value in values], form)


def _correlation(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return "undefined" if len(known) < len(values) else shown(known, ".3f")


def note_on(seeds: int, results: Mapping[str, Any]) -> str:
    """Say how the table's numbers are to be read."""
    note = "Mean ± half-width of the 95 % interval over seeds." if seeds > 1 else "One seed: no intervals (--seeds 3)."
    if "detection" in results:
        note = f"Percent of the wrong labels found among the highest scores (highest = most harmful). {note}"
    learnt, most = (_percent(results["validation"][name]) for name in ("accuracy", "majority"))
    what = "Validation accuracy" if results.get("clean", True) else "Accuracy out of fold, by the given labels,"
    return f"{note} {what} {learnt} %, largest class {most} %."


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
    likely: str | None = None  # what most seeds' models take it for when the given label is ruled out
    confidence: float = math.nan  # mean probability of the given label: out of fold, where there are folds
    sure: float = math.nan  # that of the likely one; runs of earlier versions know neither

    def labels(self) -> dict[str, str]:
        """Return the given label, and the likely and the true one where they are known."""
        known = {"given_label": self.given, "likely_label": self.likely, "true_label": self.true}
        return {name: label for name, label in known.items() if label is not None}


def rank_suspects(folder: Path, seeds: int, scorer: str) -> list[Suspect]:
    """Rank samples, most suspicious first, by the mean over seeds of the share of samples that their score is above.

    A sample whose label is flipped in one seed and not in another is two entries.
    """
    found: dict[tuple[int, str, str | None], list[tuple[float, float]]] = {}
    sure: dict[tuple[int, str, str | None], list[tuple[float, float]]] = {}
    for here in (folder / f"seed{seed}" for seed in range(seeds)):
        influences = read_table(here / SCORES)[0][f"{scorer}/{TARGET}"]
        with open(here / LABELS, newline="", encoding="utf-8") as file:
            keys = [(int(row["uid"]), row["given_label"], row.get("true_label")) for row in csv.DictReader(file)]
        keys = [key for key in keys if np.isfinite(influences[key[0]])]
        scores = influences[[uid for uid, *_ in keys]]
        for key, *one in zip(keys, suspicion(scores).tolist(), scores.tolist(), strict=True):
            found.setdefault(key, []).append((one[0], one[1]))
        told = {int(row["uid"]): row for row in _rows(here / LIKELY) if "confidence" in row}
        for key in keys if told else ():
            sure.setdefault(key, []).append((float(told[key[0]]["confidence"]), float(told[key[0]]["likely"])))
    likely, suspects = _likely(folder, seeds), []
    for (uid, given, true), seen in found.items():
        rank, score = (sum(values) / len(values) for values in zip(*seen, strict=True))
        votes = Counter({label: count for label, count in likely.get(uid, {}).items() if label != given})
        best = next((one for one, _ in votes.most_common(1)), None)
        means = [float(np.mean(one)) for one in zip(*sure.get((uid, given, true), [(math.nan,) * 2]), strict=True)]
        suspects.append(Suspect(uid, given, true, rank, score, len(seen), best, *means))
    return sorted(suspects, key=lambda one: (-one.suspicion, -one.score, one.uid))


def _likely(folder: Path, seeds: int) -> dict[int, Counter[str]]:
    """Return how many seeds' models take each sample for each class; runs of earlier versions do not say."""
    found: dict[int, Counter[str]] = {}
    for path in (folder / f"seed{seed}" / LIKELY for seed in range(seeds)):
        for row in _rows(path):
            found.setdefault(int(row["uid"]), Counter())[row["likely_label"]] += 1
    return found


def _rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV, none where it is not there."""
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_suspects(
    path: Path,
    suspects: Sequence[Suspect],
    text_names: Sequence[str],
    texts: Mapping[int, Sequence[str]],
    ids: Mapping[int, str],
) -> None:
    """Write the list as CSV; own ids, labels but the given one, and the given one's confidence only where known."""
    labels = max((list(one.labels()) for one in suspects), key=len)
    named, judged = ["id"] if ids else [], [] if math.isnan(suspects[0].confidence) else ["confidence"]
    rows: list[list[Any]] = [["rank", "uid", *named, *labels, *judged, "suspicion", "score", "seeds", *text_names]]
    for rank, one in enumerate(suspects, 1):
        own, known = one.labels(), [ids.get(one.uid, "")] if ids else []
        known += [own.get(name, "") for name in labels] + ([f"{one.confidence:.6f}"] if judged else [])
        numbers = [f"{one.suspicion:.6f}", f"{one.score:.6g}", one.seeds]
        rows.append([rank, one.uid, *known, *numbers, *texts[one.uid]])
    runs.write_csv(path, rows)


# How many are wrong


class Estimate(NamedTuple):
    """What is said of the number of wrong labels ("" without folds), and the suspects before the cut-off, if any."""

    told: str
    taken: Sequence[Suspect] | None


def estimate_wrong(seeds: Seeds, suspects: Sequence[Suspect], found: Mapping[str, Sequence[Any]] | None) -> Estimate:
    """Say how many labels are wrong; `found` are the estimates out of fold, over seeds, and what their models learnt.

    There is a cut-off where all seeds have an estimate and look at the same labels, not at flips of their own.
    """
    if found is None:
        return Estimate("", None)
    known = [value for value in found["wrong"] if value is not None]
    if len(known) < len(seeds):
        return Estimate(_refused(found), None)
    count = seeds[0]["train"]
    right = _percent(found["accuracy"])
    told = (
        f"about {shown(known, '.0f')} of {count} labels are wrong (by models that give {right} % of them out of fold)"
    )
    if seeds[0]["wrong"] is not None:
        told += f", in truth {shown([one['wrong'] for one in seeds], '.0f')}"
    if len({one.uid for one in suspects}) < len(suspects):
        return Estimate(told, None)
    cut = round(sum(known) / len(known) / count * len(suspects))
    return Estimate(f"{told}; cut-off after rank {cut}", suspects[:cut])


def _refused(found: Mapping[str, Sequence[Any]]) -> str:
    worst = found["wrong"].index(None)
    accuracy, most, p = (found[name][worst] for name in ("accuracy", "majority", "p"))
    return (
        f"no estimate of wrong labels and no cut-off: out of fold the models of seed {worst} give {accuracy:.1%} of "
        f"the given labels, the most frequent label alone is {most:.1%} (p = {p:.2g}); tune longer or take a better "
        "encoder"
    )


def clean_file(folder: Path, train: str, column: str, estimate: Estimate, how: Clean) -> str:
    """Write the training file again without the suspects before the cut-off, or with their likely labels; say so.

    A suspect whose given label is still the most probable keeps it.
    """
    if estimate.taken is None:
        return "no cleaned file: there is no cut-off"
    turned = [one for one in estimate.taken if how == "drop" or one.sure > one.confidence]
    path = folder / f"cleaned{Path(train).suffix.lower()}"
    write_cleaned(train, column, {one.uid: None if how == "drop" else one.likely for one in turned}, path)
    kept = len(estimate.taken) - len(turned)
    also = f", {kept} suspects keep the label that is still the most probable" if kept else ""
    return f"cleaned: {path}, {len(turned)} labels {'left out' if how == 'drop' else 'replaced'}{also}"


def _print_suspects(suspects: Sequence[Suspect], rank_by: str, seeds: int, texts: Mapping[int, Sequence[str]]) -> None:
    """Print the first of the list, cut to the terminal's width."""
    width = shutil.get_terminal_size((100, 24)).columns
    over = f", mean over {seeds} seeds" if seeds > 1 else ""
    print(f"most suspicious labels by {rank_by}{over} (score: influence, highest = most harmful):\n")
    labels = max((list(one.labels()) for one in suspects), key=len)
    table = [["rank", "uid", *(name.removesuffix("_label") for name in labels), "score"]]
    for rank, one in enumerate(suspects[:FIRST], 1):
        own = (plain(one.labels().get(name, ""))[:24] for name in labels)
        table.append([str(rank), str(one.uid), *own, f"{one.score:.3g}"])
    lines = as_text(table).split("\n")
    ends = ["text", "", *(plain(" | ".join(texts[one.uid])) for one in suspects[:FIRST])]
    for line, end in zip(lines, ends, strict=True):
        full = f"{line}  {end}"
        print(full if len(full) <= width else full[: width - 1] + "…")
