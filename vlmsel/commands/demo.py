"""The whole job on the embedded world: choose, tune, evaluate, and the table choice x task.

Every step runs the ordinary command on ordinary files, so what works here works on real data.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from vlmsel import progress, runs
from vlmsel.checks import check_at_least_one
from vlmsel.commands.call import call
from vlmsel.data.images import load_image
from vlmsel.data.world.files import TASKS
from vlmsel.reporting.report import write_report
from vlmsel.reporting.results import show_results
from vlmsel.studies.demo import PRESETS, ROWS, Demo, DemoSettings

__all__ = ["PRESETS", "demo"]
SHOWN = 12  # samples in a gallery of the page


def demo(
    out: str = "runs/demo",
    seeds: int = 1,
    first_seed: int = 0,
    preset: str = "quick",
    settings: DemoSettings = PRESETS["quick"],
    worlds: str | None = None,
    config: str = "",
) -> None:
    """Run the chain; a stopped run goes on when repeated.

    `results.json`, `table.md`, `table.png` and `report.html` are left in `out`.

    Args:
        out: the run folder.
        seeds: how many worlds; intervals need at least 2.
        first_seed: the first world's number.
        preset: the settings that `settings` starts from: quick; full, with alignment and every scorer; or the quick
            world with every rule by every scorer (rules), the papers' rule after alignment (papers) or before it
            (unaligned).
        settings: how large the demo is.
        worlds: the folder of an earlier demo with the same seeds and settings but for the fraction; its worlds, scores
            and models of the whole pool are taken over.
        config: the resolved configuration as text.
    """
    check_at_least_one(seeds=seeds)
    if not settings.targets or set(settings.targets) - set(TASKS):
        raise ValueError(f"targets must be some of {', '.join(TASKS)}, got {list(settings.targets)}")
    folder = runs.open_run(out, config)
    runs.same_inputs(folder, {})
    study = Demo(folder, settings, call, None if worlds is None else Path(worlds))
    study.align()
    study.run(folder, range(first_seed, first_seed + seeds), settings.arms)
    title = f"{100 * settings.fraction:g} % of the embedded world's pool"
    show_results(folder, title, ROWS, {"settings": asdict(settings)})
    first = folder / f"seed{first_seed}"
    parts = [f"{first}/evaluate"] if worlds is not None else [f"{first}/choose", f"{first}/evaluate"]
    page = write_report(tuple(parts), folder / "report.html", load_image, None, None, SHOWN)
    progress.ended(
        f"per seed under {first}: world/ choose/ tune/ evaluate/",
        f"page of the first seed: {page}",
        then="vlmsel choose --model MODEL --pool POOL --targets.NAME FILE --fraction 0.05 --out RUN",
    )
