"""What `vlmsel validate` leaves: validate.json, a table, and of several scorers a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlmsel import progress, runs
from vlmsel.reporting.figures import draw_intervals
from vlmsel.reporting.tables import as_markdown, as_text
from vlmsel.studies.verdict import MIXTURE, RANDOM, held_out, said

Rows = Mapping[str, Mapping[str, Any]]


def show_duel(folder: Path, found: Mapping[str, Rows], about: Mapping[str, Any]) -> None:
    """Write the verdicts on some scorers by every measure, of which the first decides; of a single scorer its verdicts
    alone, the others as `beside`."""
    firsts = {scorer: next(iter(own.values())) for scorer, own in found.items()}
    if len(found) > 1:
        named = {"study": "duel", "measure": gain_in(next(iter(firsts.values())))}
        show_rows(folder, duel_rows(firsts), {**named, **about, "duels": found}, firsts)
        return
    first, *others = verdicts = list(next(iter(found.values())).values())
    runs.write_json(folder / "validate.json", {**first, **about, "beside": others})
    head = ["against", *(cell for one in verdicts for cell in (gain_in(one), "verdict"))]
    rows = [[kind, *(cell for one in verdicts for cell in _gain(one[kind]))] for kind in (RANDOM, MIXTURE)]
    _show(folder, about["run"], [head, *rows], f"{said(first)}; ")


def gain_in(found: Mapping[str, Any]) -> str:
    """Name what a verdict's numbers are."""
    return f"gain in {held_out(found)}"


def show_rows(folder: Path, rows: Rows, about: Mapping[str, Any], duels: Rows | None = None) -> None:
    """Write each scorer's figure, best first."""
    runs.write_json(folder / "validate.json", {**about, "rows": rows})
    draw_intervals(rows, folder / "validate.png", f"{about['measure']} (95 %)")
    order = sorted(rows, key=lambda one: -rows[one]["value"])
    if duels is None:
        table = [["scorer", about["measure"], "95 % interval"]]
        table += [[one, f"{rows[one]['value']:+.3f}", _interval(rows[one])] for one in order]
    else:
        table = [["scorer", f"{about['measure']} against {RANDOM}", "verdict", f"against {MIXTURE}", "verdict"]]
        table += [[one, *_gain(duels[one][RANDOM]), *_gain(duels[one][MIXTURE])] for one in order]
    _show(folder, about["run"], table)


def duel_rows(found: Rows) -> dict[str, dict[str, Any]]:
    """Return the gains against random choices as values with intervals."""
    rows = {}
    for scorer, one in found.items():
        gain, half = one[RANDOM]["gain"], one[RANDOM]["half_width"]
        ends = {"low": None, "high": None} if half is None else {"low": gain - half, "high": gain + half}
        rows[scorer] = {"value": gain, **ends}
    return rows


def _gain(one: Mapping[str, Any]) -> list[str]:
    half = one["half_width"]
    return [f"{one['gain']:+.4f}" + ("" if half is None else f" ± {half:.4f}"), one["verdict"]]


def _interval(row: Mapping[str, Any]) -> str:
    return "" if row["low"] is None else f"{row['low']:+.3f} to {row['high']:+.3f}"


def _show(folder: Path, run: str, table: list[list[str]], said: str = "") -> None:
    runs.write_text(folder / "table.md", as_markdown(table))
    progress.ended(as_text(table), f"{said}{folder / 'table.md'}", then=f"vlmsel report {run} {folder}")
