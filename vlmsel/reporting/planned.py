"""A plan in lines: the steps as a table, memory by part, disk, what is suggested, what was assumed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlmsel.reporting.tables import as_text

UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def lines(plan: Mapping[str, Any]) -> list[str]:
    """Return the lines of a plan, as studies/planning.py makes it."""
    rows = [["step", "samples", "tokens", "PFLOP", "hours"]]
    for step in plan["steps"]:
        counts = [f"{step['samples']:,.0f}", f"{step['tokens']:,.0f}"] if step["samples"] else ["", ""]
        rows.append([step["name"], *counts, f"{step['operations'] / 1e15:,.3g}", duration(step["hours"])])
    model, card = plan["model"], plan["card"]
    about = (
        f"{model['name']}: {model['parameters'] / 1e6:,.4g} million parameters, "
        f"{model['looked at'] / 1e6:,.3g} million looked at, {model['learns'] / 1e6:,.3g} million learn"
    )
    memory = [f"memory, {name}: {_parts(own)}" for name, own in plan["memory"].items()]
    advice = ", ".join(
        f"{name} {'nothing fits' if value is None else format(value, ',')}" for name, value in plan["suggested"].items()
    )
    return [
        about, "", as_text(rows), "",
        *(f"assumed: {one}" for one in plan["assumed"]), "",
        *memory,
        f"curvature: {plan['curvature']}",
        f"disk: {_parts(plan['disk'])}",
        f"in all {duration(plan['hours'])} on one {card['name']} with {size(card['memory'])}",
        f"suggested: {advice}",
    ]  # fmt: skip


def duration(hours: float) -> str:
    """Write hours, minutes or seconds.

    >>> duration(12.34), duration(0.5), duration(0.001)
    ('12.3 h', '30 min', '4 s')
    """
    if hours >= 2:
        return f"{hours:,.1f} h" if hours < 100 else f"{hours:,.0f} h"
    return f"{60 * hours:.0f} min" if hours >= 1 / 30 else f"{3600 * hours:.0f} s"


def size(count: float) -> str:
    """Write bytes.

    >>> size(8.6e9), size(1200)
    ('8.6 GB', '1.2 kB')
    """
    unit, name = next(((unit, name) for unit, name in UNITS if count >= unit), (1.0, "B"))
    return f"{count / unit:.3g} {name}"


def _parts(found: Mapping[str, float]) -> str:
    return (
        f"{size(sum(found.values()))} ({', '.join(f'{name} {size(value)}' for name, value in found.items() if value)})"
    )
