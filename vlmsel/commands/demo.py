"""The whole job on the embedded world: choose, tune, evaluate, and the table choice x task.

Every step runs the ordinary command on ordinary files, so what works here works on real data.
"""

from __future__ import annotations

from dataclasses import asdict

from vlmsel import runs
from vlmsel.checks import check_at_least_one
from vlmsel.commands.call import call
from vlmsel.data.world.files import TASKS
from vlmsel.reporting.results import show_results
from vlmsel.studies.demo import PRESETS, ROWS, Demo, DemoSettings

__all__ = ["PRESETS", "demo"]


def demo(
    out: str = "runs/demo",
    seeds: int = 1,
    first_seed: int = 0,
    preset: str = "quick",
    settings: DemoSettings = PRESETS["quick"],
    config: str = "",
) -> None:
    """Run the chain and leave `results.json`, `table.md` and `table.png` in `out`; a stopped run goes on when repeated.

    Args:
        out: the run folder.
        seeds: how many worlds; intervals need at least 2.
        first_seed: the first world's number.
        preset: the settings that `settings` starts from: quick; full, with alignment and every scorer; or rules, the
            quick world with every rule by every scorer.
        settings: how large the demo is.
        config: the resolved configuration as text.
    """
    check_at_least_one(seeds=seeds)
    if not settings.targets or set(settings.targets) - set(TASKS):
        raise ValueError(f"targets must be some of {', '.join(TASKS)}, got {list(settings.targets)}")
    folder = runs.open_run(out, config)
    runs.same_inputs(folder, {})
    study = Demo(folder, settings, call)
    study.align()
    study.run(folder, range(first_seed, first_seed + seeds), settings.arms)
    title = f"{100 * settings.fraction:g} % of the embedded world's pool"
    show_results(folder, title, ROWS, {"settings": asdict(settings)})
    print(f"per seed under {folder / f'seed{first_seed}'}: world/ choose/ tune/ evaluate/")
    print("next, with your own files: vlmsel choose --help")
