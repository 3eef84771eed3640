"""The page of run folders: verdict, results, the scored pool, the choice, samples, and how all of it came about."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vlmsel.reporting.about import about_section
from vlmsel.reporting.cards import Opener
from vlmsel.reporting.composition import composition_section, left_out_section
from vlmsel.reporting.distributions import affinity_section, agreement_section, curvature_section, scores_section
from vlmsel.reporting.folders import Found, find
from vlmsel.reporting.galleries import samples_section
from vlmsel.reporting.outcome import results_section, training_section, verdict_section
from vlmsel.reporting.page import write_page
from vlmsel.reporting.parts import Section
from vlmsel.reporting.scored import Scored, open_scored
from vlmsel.reporting.suspects import detection_sections


def write_report(
    folders: tuple[str, ...], out: str | Path, opened: Opener, images: str | None, scorer: str | None, samples: int
) -> Path:
    """Write the page of some run folders and choices.

    Args:
        folders: run folders, chosen files or their manifests.
        out: the page.
        opened: opens a picture of a folder.
        images: the image folder, where it is another than the run's.
        scorer: whose ranks galleries go by.
        samples: the most in each gallery.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: one is no run folder, or holds nothing to show.
    """
    found = find(folders)
    sections = [section for section in _sections(found, opened, images, scorer, samples) if section is not None]
    return write_page(out, f"vlmsel report: {_title(found)}", ", ".join(folders), sections)


def _title(found: Found) -> str:
    named = list(
        dict.fromkeys([run.folder.resolve().name for run in found.runs] or [one.name for one in found.choices])
    )
    return ", ".join(named[:3]) + (f" and {len(named) - 3} more" if len(named) > 3 else "")


def _sections(
    found: Found, opened: Opener, images: str | None, scorer: str | None, samples: int
) -> Iterator[Section | None]:
    if len(found.by("detect")) < len(found.runs) or found.choices:
        yield verdict_section(found)
    yield results_section(found)
    for run in found.by("detect"):
        yield from detection_sections(run)
    pools = open_scored(found)
    for scored in pools:
        named = f" ({scored.run.folder})" if len(pools) > 1 else ""
        for section in _of_pool(scored, opened, images, scorer, samples):
            if section is not None:
                yield Section(section.title + named, section.parts)
    yield training_section(found)
    yield left_out_section(found)
    yield about_section(found)


def _of_pool(
    scored: Scored, opened: Opener, images: str | None, scorer: str | None, samples: int
) -> Iterator[Section | None]:
    main = scored.main(scorer)
    yield composition_section(scored)
    yield samples_section(scored, main, samples, opened, images)
    yield scores_section(scored, main)
    yield affinity_section(scored)
    yield agreement_section(scored)
    yield curvature_section(scored)
