"""A labelled file without some of its samples, or with other labels for them, in the form that it has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from vlmsel.data.labelled import label_word
from vlmsel.data.rows import Unread, read_rows, write_rows

Clean = Literal["drop", "relabel"]  # what becomes of a suspect


def write_cleaned(source: str | Path, column: str, changes: Mapping[int, str | None], path: Path) -> None:
    """Write the rows of a labelled file that `read_labelled` reads; the others stay as they are.

    A new label is written as the file writes it elsewhere (1.0 for 1). Rows that could not be read are not written.

    Args:
        source: the file.
        column: the one with the labels.
        changes: the new label of a sample by its uid; None leaves the sample out.
        path: the new file.
    """
    names, rows = read_rows(source)
    whole = [(uid, row) for uid, (_, row) in enumerate(rows) if not isinstance(row, Unread)]
    written = {label_word(row.get(column)): row.get(column) for _, row in reversed(whole)}
    kept = []
    for uid, row in whole:
        new = changes.get(uid, "")
        if new is not None:
            kept.append({**row, column: written.get(new, new)} if new else row)
    write_rows(path, names, kept, source)
