"""Sections on a scored pool: how scores and affinities are distributed, how far scorers agree, what curvature did."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from vlmsel.reporting.parts import Histogram, Matrix, Part, Prose, Section, Table, dots, histogram
from vlmsel.reporting.scored import Scored

CHARTS = 60  # histograms of one kind
SOURCES = 20  # rows of a chart by source
SHARE = 0.05  # of the pool whose overlap is told where nothing was chosen
SIGN = "Scores are influences on a target's loss: lowest = most helpful, highest = most harmful."
AFFINITY = (
    "Unit affinities are cosines in the scorer's metric, here averaged over the samples of a target file: highest = "
    "most helpful. They do not see how large a sample's gradient is."
)


def scores_section(scored: Scored, main: str) -> Section:
    """Show the scores per scorer, target and source."""
    rows: list[list[str]] = []
    charts: list[Part] = []
    for scorer, target in scored.names:
        values = scored.scores(scorer, target)
        known = values[np.isfinite(values)]
        if not len(known):
            rows.append([f"{scorer}/{target}", "0", *[""] * 6])
            continue
        marks = np.quantile(known, [0, 0.05, 0.5, 0.95, 1])
        helps = f"{100 * (known < 0).mean():.1f} %"
        rows.append([f"{scorer}/{target}", str(len(known)), *(f"{one:.3g}" for one in marks), helps])
        charts += _drawn(f"{scorer}/{target}", {"scores": values})
    head = ["scorer/target", "samples", "lowest", "5 %", "median", "95 %", "highest", "below 0"]
    parts: list[Part] = [Prose(SIGN), Table("Distribution of scores", head, rows), *charts[:CHARTS]]
    if len(charts) > CHARTS:
        parts.append(Prose(f"{len(charts) - CHARTS} more columns are in the table only."))
    return Section("Scores", [*parts, *_by_source(scored, main)])


def _drawn(caption: str, series: Mapping[str, np.ndarray]) -> list[Histogram]:
    drawn = histogram(caption, series)
    return [] if drawn is None else [drawn]


def _by_source(scored: Scored, scorer: str) -> list[Part]:
    """Show the ranks of one scorer by source, target by target."""
    names, counts = np.unique(scored.sources[scored.usable], return_counts=True)
    most = [names[i] for i in np.argsort(-counts, kind="stable")][:SOURCES]
    more = f"; the {SOURCES} largest of {len(names)} sources" if len(names) > SOURCES else ""
    parts: list[Part] = []
    for target in scored.targets:
        ranks = scored.ranks(scorer, target)
        place = 100 * ranks / np.nanmax(ranks) if np.isfinite(ranks).any() else ranks
        rows = []
        for source in most:
            own = place[(scored.sources == source) & np.isfinite(place)]
            if len(own):
                low, middle, high = (float(one) for one in np.quantile(own, [0.25, 0.5, 0.75]))
                rows.append((source, middle, low, high, f"{middle:.0f} %"))
        caption = f"{scorer}/{target} by source: rank in % of the pool, median and middle half{more} (left = helpful)"
        parts.append(dots(caption, rows, mark=50.0, within=(0.0, 100.0)))
    return parts


def affinity_section(scored: Scored) -> Section | None:
    """Show mean unit affinities to the target files; None where there is no affinity file."""
    if scored.affinities is None:
        return None
    rows, charts = [], []
    shares = scored.affinities.about["share"]
    for scorer in scored.affinities.about["scorers"]:
        for file, values in scored.unit_affinities(scorer).items():
            low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
            numbers = [f"{one:.3f}" for one in (low, middle, high, float(values.max()))]
            rows.append(
                [f"{scorer}, {file}", *numbers, f"{100 * (values > 0).mean():.1f} %", f"{100 * shares[scorer]:.1f} %"]
            )
            charts += _drawn(f"{scorer}, affinity to {file}", {"affinities": values})
    head = ["scorer, target file", "5 %", "median", "95 %", "highest", "above 0", "of the targets' variance kept"]
    return Section("Affinities", [Prose(AFFINITY), Table("Unit affinities", head, rows), *charts[:CHARTS]])


def agreement_section(scored: Scored) -> Section | None:
    """Compare the scorers' rankings; None for a single one."""
    scorers = scored.scorers
    if len(scorers) < 2:
        return None
    chosen = scored.choice()
    size = len(chosen.manifest["uids"]) if chosen else max(1, round(SHARE * int(scored.usable.sum())))
    parts: list[Part] = []
    for target in [None, *(scored.targets if len(scored.targets) > 1 else ())]:
        ranks = [scored.ranks(scorer, target) for scorer in scorers]
        name = "all targets" if target is None else target
        cells = [[_correlation(one, other) for other in ranks] for one in ranks]
        parts.append(Matrix(f"Rank correlation (Spearman), {name}", scorers, cells))
        if target is None:
            shared = [[_overlap(one, other, size) for other in ranks] for one in ranks]
            chance = f"By chance {size / max(1, int(scored.usable.sum())):.2f}."
            parts.append(Matrix(f"Overlap of the {size} most helpful, {name}", scorers, shared, note=chance))
    return Section("Agreement of scorers", parts)


def _correlation(one: np.ndarray, other: np.ndarray) -> float | None:
    both = np.isfinite(one) & np.isfinite(other)
    if both.sum() < 2 or np.ptp(one[both]) == 0 or np.ptp(other[both]) == 0:
        return None
    return float(np.corrcoef(one[both], other[both])[0, 1])


def _overlap(one: np.ndarray, other: np.ndarray, size: int) -> float | None:
    """Return the part of one's first samples that the other has among its own."""
    first, second = (set(np.argsort(ranks, kind="stable")[:size].tolist()) for ranks in (one, other))
    return len(first & second) / size if size else None


def curvature_section(scored: Scored) -> Section | None:
    """Show what each scorer's solver reports by block; None where none does."""
    rows: list[list[str]] = []
    for scorer, blocks in scored.about.get("details", {}).items():
        for block, numbers in blocks.items():
            if isinstance(numbers, Mapping) and any(cells := _solved(numbers)):
                rows.append([f"{scorer}, {block}", *cells])
    if not rows:
        return None
    head = [
        "scorer, block",
        "damping",
        "condition at most",
        "steps",
        "residual",
        "converged",
        "refinements",
        "remarks",
    ]
    note = (
        "The residual is what the last step left of the identity, before the solution was refined; the condition is "
        "the bound on the largest eigenvalue of the damped curvature over its damping."
    )
    bad = sum(row[5] == "no" for row in rows)
    told = f"{bad} of {len(rows)} blocks did not converge." if bad else f"{len(rows)} blocks, none failed to converge."
    return Section("Curvature", [Prose(told, "bad" if bad else "plain"), Table("Solves by block", head, rows, note)])


def _solved(numbers: Mapping[str, Any]) -> list[str]:
    damping, bound, residuals = (numbers.get(name) for name in ("damping", "bound", "residuals"))
    steps = len(residuals) if residuals else numbers.get("steps", numbers.get("depth"))
    converged, solver = numbers.get("converged"), numbers.get("solver", "")
    return [
        _number(damping),
        _number(bound / damping if bound and damping else None),
        "" if steps is None else str(steps),
        _number(residuals[-1] if residuals else None),
        "" if converged is None else "yes" if converged else "in float64" if "float64" in solver else "no",
        str(numbers.get("refinements", "")),
        str(numbers.get("instead", "")),
    ]


def _number(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.3g}"
