"""Tables: cells with a mean and its interval, and rows of them as text or Markdown, head first."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vlmsel.studies.intervals import interval


def shown(values: Sequence[float], form: str = ".1f") -> str:
    """Write a mean with its interval: `71.3 ± 2.0`, or `71.3` for one value; `form` is that of the mean.

    >>> shown([1.0, 2.0, 3.0]), shown([0.25], "+.2f")
    ('2.0 ± 2.5', '+0.25')
    """
    mean, half = interval(values)
    return f"{mean:{form}}" if math.isnan(half) else f"{mean:{form}} ± {half:{form.lstrip('+')}}"


def as_text(table: Sequence[Sequence[str]]) -> str:
    """Set a table in columns for a terminal."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for first, *rest in table:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
        lines.append("  ".join(cells))
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def as_markdown(table: Sequence[Sequence[str]]) -> str:
    """Write a table in Markdown."""
    lines = ["| " + " | ".join(row) + " |" for row in table]
    return "\n".join([lines[0], "|" + "---|" * len(table[0]), *lines[1:]]) + "\n"
