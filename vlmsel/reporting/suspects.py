"""Sections of a run of `detect`: what the scorers find where errors are known, and the suspects to decide on."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from vlmsel.reporting.detection import detection_rows, note_on
from vlmsel.reporting.folders import Run
from vlmsel.reporting.parts import Lines, Part, Prose, Section, Suspect, Suspects, Table
from vlmsel.studies.detection import POINTS

MOST = 500  # suspects on a page
LABELS = ("given_label", "likely_label", "true_label")
FIXED = ("rank", "uid", "id", *LABELS, "confidence", "suspicion", "score", "seeds")
LONGEST = 2000  # characters of a text
HOW = (
    "Decide on the most suspicious first and stop when they are mostly right. The CSV has a line for each of these "
    "samples: uid, given and likely label, your decision, and the new label where you set one."
)


def detection_sections(run: Run) -> list[Section]:
    """Return the sections of a run that is done; none of one that is not."""
    results, path = run.json("results.json"), run.folder / "suspects.csv"
    if results is None or not path.is_file():
        return []
    rows, total, labels = read_suspects(path)
    parts: list[Part] = [Prose(f"{results['title']}.")]
    if "detection" in results or "agreement" in results:
        head, *table = detection_rows(results)
        parts.append(Table("What each scorer finds", head, table, note_on(results["seeds"], results)))
    if "curves" in results:
        parts.append(_curves(results["curves"]))
    known = any(one.true for one in rows)
    caption = f"The {len(rows)} most suspicious of {total} labels by {results['rank_by']} (highest = most harmful)"
    cut, told = results.get("cut"), results.get("estimate")  # runs of earlier versions have neither
    suspects: list[Part] = [*([Prose(f"{told[0].upper()}{told[1:]}.")] if told else []), Prose(HOW)]
    suspects += [Prose(f"The whole list: {path}."), Suspects(caption, rows, labels, known, cut)]
    return [Section(f"Detection ({run.folder.name})", parts), Section(f"Suspects ({run.folder.name})", suspects)]


def _curves(curves: Mapping[str, Sequence[Sequence[float]]]) -> Lines:
    across = np.linspace(0, 100, POINTS).tolist()
    drawn = {
        name: list(zip(across, (100 * np.mean(own, axis=0)).tolist(), strict=True)) for name, own in curves.items()
    }
    drawn["random inspection"] = [(0.0, 0.0), (100.0, 100.0)]
    return Lines("Wrong labels found against labels inspected", drawn, "inspected, highest scores first", "found")


def read_suspects(path: Path, most: int = MOST) -> tuple[list[Suspect], int, list[str]]:
    """Read the first suspects of `suspects.csv`; return them, how many there are, and the labels of all."""
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        texts = [name for name in reader.fieldnames or () if name not in FIXED]
        first = list(islice(reader, most))
        labels, total = {row["given_label"]: 0 for row in first}, len(first)
        for row in reader:
            labels[row["given_label"]] = 0
            total += 1
    labels |= {row[name]: 0 for row in first for name in ("likely_label", "true_label") if row.get(name)}
    return [_suspect(row, texts, list(labels)) for row in first], total, sorted(labels)


def _suspect(row: Mapping[str, Any], texts: Sequence[str], labels: Sequence[str]) -> Suspect:
    given = row["given_label"]
    others = [label for label in labels if label != given]
    likely = row.get("likely_label") or (others[0] if len(others) == 1 else "")
    said = [row[name] if len(row[name]) <= LONGEST else row[name][:LONGEST] + "…" for name in texts]
    suspicion = float(row["suspicion"])
    return Suspect(
        int(row["rank"]), int(row["uid"]), given, likely, row.get("true_label") or "", suspicion, row["score"], said
    )
