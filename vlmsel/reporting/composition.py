"""Sections on what was chosen: the pool and its choices by source, answer length and loss, and what was left out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vlmsel import runs
from vlmsel.reporting.folders import Choice, Found
from vlmsel.reporting.parts import Part, Prose, Section, Table, histogram
from vlmsel.reporting.scored import Scored

CHOICES = 6  # that are compared
SOURCES = 50  # rows of the table
REASONS = 30  # kinds that are listed
EXAMPLES = 3  # of each


def composition_section(scored: Scored) -> Section:
    """Compare the pool with its choices."""
    choices = list(scored.choices)[:CHOICES]
    parts: list[Part] = [] if choices else [Prose("No choice of this pool was given; vlmsel select makes one.", "open")]
    if len(scored.choices) > CHOICES:
        parts.append(Prose(f"The first {CHOICES} of {len(scored.choices)} choices are compared."))
    parts += [_sizes(scored, choices), _sources(scored, choices)]
    length = "supervised tokens" if scored.length == "supervised" else "tokens"
    for name, column in ((length, scored.length), ("loss", "loss")):
        values = np.where(scored.usable, scored.columns[column], np.nan)
        several = [{"pool": values, choice.name: values[_uids(choice, scored)]} for choice in choices]
        drawn = [histogram(", ".join([name, *list(one)[1:]]), one, 30) for one in several or [{"pool": values}]]
        parts += [one for one in drawn if one is not None]
    return Section("Pool and choice", parts)


def _uids(choice: Choice, scored: Scored) -> np.ndarray:
    uids = np.asarray(choice.manifest["uids"], dtype=np.int64)
    if len(uids) and not (0 <= uids.min() and uids.max() < len(scored)):
        raise ValueError(
            f"{choice.path}: names samples that the pool of {scored.run.folder} does not have; choose again"
        )
    return uids


def _sizes(scored: Scored, choices: Sequence[Choice]) -> Table:
    everything = [("pool (scored)", "", np.flatnonzero(scored.usable))]
    everything += [(one.name, _how(one), _uids(one, scored)) for one in choices]
    rows = []
    for name, how, uids in everything:
        tokens, loss = scored.columns[scored.length][uids], scored.columns["loss"][uids]
        means = ["", ""] if not len(uids) else [f"{np.nanmean(tokens):.1f}", _mean(loss)]
        rows.append(
            [name, how, str(len(uids)), f"{100 * len(uids) / len(scored):.1f} %", *means, f"{tokens.sum():.0f}"]
        )
    length = "supervised tokens" if scored.length == "supervised" else "tokens"
    head = ["", "chosen by", "samples", "of the file", f"mean {length}", "mean loss", f"{length} in all"]
    return Table("Size", head, rows)


def _how(choice: Choice) -> str:
    rule = choice.manifest.get("rule") or ("top" if "columns" in choice.manifest else "")
    return f"{choice.scorer} {rule}".strip()


def _mean(values: np.ndarray) -> str:
    known = values[np.isfinite(values)]
    return f"{known.mean():.3f}" if len(known) else ""


def _sources(scored: Scored, choices: Sequence[Choice]) -> Table:
    names, counts = np.unique(scored.sources[scored.usable], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    own = [Counter(scored.sources[_uids(choice, scored)].tolist()) for choice in choices]
    rows = []
    for i in order[:SOURCES]:
        shares = [f"{100 * count[names[i]] / max(1, count.total()):.1f} %" for count in own]
        rows.append([str(names[i]), str(counts[i]), f"{100 * counts[i] / counts.sum():.1f} %", *shares])
    note = f"The {SOURCES} largest of {len(names)} sources." if len(names) > SOURCES else ""
    return Table("Sources", ["source", "samples", "pool", *(one.name for one in choices)], rows, note)


# What was left out


def left_out_section(found: Found) -> Section:
    """List by reason what runs left out."""
    parts: list[Part] = []
    for run in found.runs:
        for path in sorted(run.folder.glob("skipped*.json")):
            parts.append(_reasons(path))
    told = "Samples that could not be used, by reason. They have no score and change no other's."
    return Section("Left out", [Prose(told), *parts] if parts else [Prose("No run left a sample out.")])


def _reasons(path: Path) -> Table:
    kinds: dict[str, list[tuple[int, str]]] = {}
    listed = runs.read_json(path)
    for one in listed:
        kinds.setdefault(kind_of(one["reason"]), []).append((one["uid"], one["reason"]))
    ordered = sorted(kinds.items(), key=lambda item: -len(item[1]))
    rows = []
    for kind, own in ordered[:REASONS]:
        examples = "; ".join(f"sample {uid}: {reason[:200]}" for uid, reason in own[:EXAMPLES])
        rows.append([kind[:200], str(len(own)), examples])
    rest = sum(len(own) for _, own in ordered[REASONS:])
    note = f"{rest} more for {len(ordered) - REASONS} other reasons." if rest else ""
    return Table(f"{path}: {len(listed)} left out", ["reason", "samples", "the first"], rows, note)


def kind_of(reason: str) -> str:
    """Return a reason without what differs from sample to sample: names in quotes, numbers.

    >>> kind_of("image 'coco/12.jpg' is missing in pics/7")
    "image '…' is missing in pics/…"
    """
    return re.sub(r"\d+(\.\d+)?", "…", re.sub(r"(['\"]).*?\1", "'…'", reason))
