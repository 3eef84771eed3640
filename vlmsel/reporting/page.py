"""The page: sections in one HTML file that needs nothing beside itself.

All texts go through Jinja2's escaping. The only script is ours, and the page names its hash in its content security
policy: a browser runs no other, loads nothing from a network and shows pictures that lie in the page alone.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from vlmsel import __version__, runs
from vlmsel.reporting.parts import Section

GENERATOR = "vlmsel report"


def write_page(path: str | Path, title: str, lead: str, sections: Sequence[Section]) -> Path:
    """Write a page; `lead` is the line under its title.

    Raises:
        ValueError: the file is there and is no page of ours.
    """
    path = Path(path)
    if path.exists() and not _ours(path):
        raise ValueError(f"{path}: is there and is no page of {GENERATOR}; choose another --out")
    runs.write_text(path, page(title, lead, sections))
    return path


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """Return a page as text."""
    script, style = _asset("page.js"), _asset("page.css")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        _environment()
        .get_template("page.html")
        .render(
            title=title,
            lead=lead,
            sections=list(zip(_anchors(sections), sections, strict=True)),
            version=__version__,
            generator=GENERATOR,
            style=Markup(style),  # ours, no data in it
            script=Markup(script),
            digest=digest,
        )
    )


def _anchors(sections: Sequence[Section]) -> list[str]:
    """Return what links to each section say, no two the same."""
    found: list[str] = []
    for number, section in enumerate(sections):
        found.append(f"{section.anchor}-{number}" if section.anchor in found else section.anchor)
    return found


def _ours(path: Path) -> bool:
    return path.is_file() and f'name="generator" content="{GENERATOR}' in path.read_bytes()[:2000].decode(
        "utf-8", "replace"
    )


@cache
def _environment() -> Environment:
    loader = PackageLoader("vlmsel.reporting", "template")
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters["percent"] = lambda value: f"{value:.2f}%"
    made.filters["groups"] = lambda parts: groupby(parts, lambda part: part.kind == "histogram")
    return made


def _asset(name: str) -> str:
    return (Path(__file__).parent / "template" / name).read_text(encoding="utf-8")
