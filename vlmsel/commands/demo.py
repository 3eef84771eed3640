"""The whole job on the embedded world: align, score, select, tune, evaluate, and the table scorer x task.

Every step runs the ordinary command on ordinary files, so what works here works on real data. Per seed there are
another world (pool, targets, benchmark), another order of training samples and another random subset; the aligned
model is shared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from vlmsel import runs
from vlmsel.commands.align import align
from vlmsel.commands.evaluate import evaluate
from vlmsel.commands.score import score
from vlmsel.commands.select import select
from vlmsel.commands.tune import tune
from vlmsel.data.world.files import TASKS, WorldSizes, benchmark_files, write_world
from vlmsel.reporting.tables import as_markdown, as_text, collect, draw, rows
from vlmsel.training.phases import phase_preset

SCORERS = ("Random", "TracIn", "TracIn.scaled", "DataInf", "LiSSA", "HyperINF")
FULL, BEFORE = "full_pool", "not tuned"


@dataclass(frozen=True)
class DemoSettings:
    """How large the demo is.

    Attributes:
        captions: captions for alignment.
        pool: samples in the instruction pool.
        target: samples per target set.
        questions: questions per benchmark.
        fraction: part of the pool that each scorer selects.
        targets: the tasks that it is selected for. POPE is left out: the aligned model does it already, and there the
            largest gradients are those of wrong answers. All four are scored and evaluated.
        align_epochs: passes over the captions.
        tune_epochs: passes over what was selected, the same for every model.
        fit_samples: samples that curvature is fitted on.
        damping: relative damping of the second-order scorers.
    """

    captions: int = 4000
    pool: int = 5000
    target: int = 100
    questions: int = 240
    fraction: float = 0.2
    targets: tuple[str, ...] = ("vqav2", "gqa", "textvqa")
    align_epochs: float = 2.0
    tune_epochs: float = 3.0
    fit_samples: int = 1000
    damping: float = 0.1


def demo(
    out: str = "runs/demo",
    seeds: int = 1,
    settings: DemoSettings = DemoSettings(),
    config: str = "",
) -> None:
    """Run the chain and leave `results.json`, `table.md` and `table.png` in `out`; a stopped run goes on when repeated.

    Args:
        out: the run folder.
        seeds: how many worlds; intervals need at least 2.
        settings: how large the demo is.
        config: the resolved configuration as text.
    """
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}")
    if not settings.targets or set(settings.targets) - set(TASKS):
        raise ValueError(f"targets must be some of {', '.join(TASKS)}, got {list(settings.targets)}")
    folder = runs.open_run(out, "\n".join(line for line in config.splitlines() if not line.startswith("seeds:")) + "\n")
    aligned = _align(folder, settings)
    for seed in range(seeds):
        _one_seed(folder, aligned, seed, settings)
    _show(folder, settings)


def _run(command: Callable[..., None], out: Path, **arguments: Any) -> None:
    """Run a command with its arguments as its configuration."""
    print(f"\n== vlmsel {command.__name__} -> {out}", flush=True)
    command(out=str(out), config=yaml.safe_dump(_plain(arguments)), **arguments)


def _plain(content: Any) -> Any:
    if is_dataclass(content):
        content = asdict(content)  # type: ignore[arg-type]
    if isinstance(content, Mapping):
        return {key: _plain(value) for key, value in content.items()}
    return [_plain(value) for value in content] if isinstance(content, (list, tuple)) else content


def _world(folder: Path, sizes: WorldSizes, seed: int) -> Path:
    """Draw a world into `folder` unless it lies there already."""
    if not (folder / "world.json").is_file():
        print(f"\n== drawing world {seed} -> {folder}", flush=True)
        write_world(folder, sizes, seed)
    return folder


def _align(folder: Path, settings: DemoSettings) -> Path:
    world = _world(folder / "captions", WorldSizes(settings.captions, 0, 0, 0), seed=0)
    phase = replace(phase_preset("tiny-align"), epochs=settings.align_epochs)
    _run(align, folder / "align", data=str(world / "captions.json"), images=str(world / "images"), settings=phase)
    return folder / "align"


def _one_seed(folder: Path, aligned: Path, seed: int, settings: DemoSettings) -> None:
    """Run one world's chain."""
    here = folder / f"seed{seed}"
    world = _world(here / "world", WorldSizes(0, settings.pool, settings.target, settings.questions), seed)
    _run(
        score,
        here / "score",
        model=str(aligned),
        pool=str(world / "pool.json"),
        images=str(world / "images"),
        targets={task: str(world / "targets" / f"{task}.json") for task in TASKS},
        scorers=_scorers(seed, settings.damping),
        fit_samples=settings.fit_samples,
        seed=seed,
    )
    subsets = {name: _subset(here, world, name, settings) for name in SCORERS}
    _evaluate(here, world, aligned, BEFORE)
    for name, data in {**subsets, FULL: world / "pool.json"}.items():
        phase = replace(phase_preset("tiny-tune"), epochs=settings.tune_epochs, seed=seed)
        tuned = here / "tune" / name
        _run(tune, tuned, model=str(aligned), data=str(data), images=str(world / "images"), settings=phase)
        _evaluate(here, world, tuned, name)


def _scorers(seed: int, damping: float) -> tuple[str, ...]:
    return (
        f"Random(seed={seed})",
        "TracIn",
        "TracIn(block_scale=True, name='TracIn.scaled')",
        *(f"{name}(damping={damping})" for name in ("DataInf", "LiSSA", "HyperINF")),
    )


def _subset(here: Path, world: Path, name: str, settings: DemoSettings) -> Path:
    out = here / "selected" / f"{name}.json"
    select(
        scores=str(here / "score" / "scores.parquet"),
        pool=str(world / "pool.json"),
        out=str(out),
        scorer=name,
        target=list(settings.targets),
        fraction=settings.fraction,
    )
    return out


def _evaluate(here: Path, world: Path, model: Path, name: str) -> None:
    for task, files in benchmark_files(world).items():
        out = here / "evaluate" / name / task
        images = str(world / "images" / "test" / task)
        _run(evaluate, out, model=str(model), task=task, images=images, protocol="bare", **files)


def _show(folder: Path, settings: DemoSettings) -> None:
    """Write the results and print them, with where everything lies."""
    values, tasks = collect(folder, [BEFORE, *SCORERS, FULL])
    seeds = len(values[FULL][tasks[0]])
    table = rows(values, tasks)
    title = f"{100 * settings.fraction:g} % of the embedded world's pool, {seeds} seed{'s' if seeds > 1 else ''}"
    runs.write_json(folder / "results.json", {"settings": asdict(settings), "seeds": seeds, "percent": values})
    runs.write_text(folder / "table.md", as_markdown(table))
    draw(values, tasks, folder / "table.png", title)
    note = "mean ± half-width of the 95 % interval over seeds" if seeds > 1 else "one seed: no intervals (--seeds 3)"
    print(f"\n{title}; accuracy in % (POPE: F1); {note}\n\n{as_text(table)}\n")
    print(f"table: {folder / 'table.md'}   picture: {folder / 'table.png'}   numbers: {folder / 'results.json'}")
    print(f"per seed under {folder / 'seed0'}: world/ score/scores.parquet selected/ tune/ evaluate/")
