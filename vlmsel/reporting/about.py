"""The section on how it came about: settings, versions, what was read, and how to do it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from vlmsel.reporting.folders import Found, Run
from vlmsel.reporting.parts import Code, Part, Prose, Section, Table


def about_section(found: Found) -> Section:
    """Show configuration, versions and inputs of every run."""
    parts: list[Part] = []
    if found.runs:
        told = "The command of each run, which does the same again where what it reads is the same by content."
        parts += [Prose(told), Code("Commands", "\n".join(map(_again, found.runs)))]
    if (versions := _versions(found)) is not None:
        parts.append(versions)
    for run in found.runs:
        parts.append(Code(f"Settings of {run.folder} ({run.command})", run.text, shut=True))
        if inputs := run.json("inputs.json"):
            rows = [[name, str(digest)] for name, digest in inputs.items() if not name.startswith("the version of ")]
            if rows:
                text = "\n".join(f"{name}: {digest}" for name, digest in rows)
                parts.append(Code(f"What {run.folder} read (SHA-256)", text, shut=True))
    for choice in found.choices:
        known = {name: value for name, value in choice.manifest.items() if isinstance(value, str | int | float | dict)}
        parts.append(Code(f"Choice {choice.path}", json.dumps(known, indent=1, ensure_ascii=False), shut=True))
    return Section("How it came about", parts)


def _again(run: Run) -> str:
    return f"vlmsel {run.command} --config {run.folder / 'config.yaml'} --out {run.folder}"


def _versions(found: Found) -> Table | None:
    """Return the versions that the runs were made with, one column per run; None where none says."""
    known: dict[str, Mapping[str, Any]] = {
        str(run.folder): run.json("environment.json") or {} for run in found.runs if run.json("environment.json")
    }
    if not known:
        return None
    different = list({json.dumps(one, sort_keys=True): name for name, one in known.items()}.values())
    names = list(dict.fromkeys(name for one in known.values() for name in one))
    rows = [[name, *(str(known[run].get(name, "")) for run in different)] for name in names]
    head = ["", *different] if len(different) > 1 else ["", "all runs"]
    return Table("Versions", head, rows)
