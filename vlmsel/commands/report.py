"""One page of what lies in run folders: verdict, results, scores, choice, samples with pictures, suspects."""

from __future__ import annotations

from pathlib import Path

from vlmsel import progress
from vlmsel.checks import check_at_least_one
from vlmsel.data.images import load_image
from vlmsel.reporting.report import write_report

POSITIONAL = "runs"


def report(
    runs: tuple[str, ...],
    out: str | None = None,
    images: str | None = None,
    scorer: str | None = None,
    samples: int = 12,
    config: str = "",
) -> None:
    """Write one HTML file that needs no network and nothing beside it.

    Args:
        runs: run folders of any command, chosen files or their manifests; they may stand before the options, without a
            name. Those of one pool are shown together.
        out: the file to write; `report.html` in the first run folder when left out.
        images: the image folder of the pool, where it is another than the run's.
        scorer: whose ranks the galleries go by; the choice's when left out.
        samples: the most samples in each gallery.
        config: the resolved configuration as text.
    """
    check_at_least_one(samples=samples)
    if not runs:
        raise ValueError("name at least one run folder: vlmsel report RUN")
    first = Path(runs[0])
    path = (first if first.is_dir() else first.parent) / "report.html" if out is None else Path(out)
    made = write_report(runs, path, load_image, images, scorer, samples)
    progress.ended(
        f"{made}: {made.stat().st_size / 1e6:.1f} MB, open it in a browser", then=f"python -m webbrowser {made}"
    )
