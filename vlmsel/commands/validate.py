"""Is the choice better than a random one here? Measured on small ones, before the long run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from vlmsel import processes, progress, runs
from vlmsel.checks import check_at_least_one
from vlmsel.commands.call import call
from vlmsel.commands.options import FeatureOptions, ReadingOptions
from vlmsel.data.formats import read_records
from vlmsel.models.config import LoraSpec
from vlmsel.reporting.tables import as_markdown, as_text
from vlmsel.scorers.load import load_scorers
from vlmsel.selection import Rule, how_many
from vlmsel.studies.duel import Duel, Sides
from vlmsel.studies.verdict import MIXTURE, RANDOM, said, verdict
from vlmsel.training.phases import PhaseSettings


def validate(
    run: str,
    out: str,
    fraction: float | None = None,
    count: int | None = None,
    rule: Rule = "round_robin",
    seeds: int = 3,
    draws: int = 2,
    epochs: float | None = None,
    device: str = "auto",
    config: str = "",
) -> None:
    """Tune on what half of every target file chooses and on random choices; the other halves judge. Writes
    `out/validate.json` and `out/table.md`; a stopped run goes on.

    Args:
        run: the run folder of `vlmsel choose`.
        out: the run folder.
        fraction: part of the pool that is chosen for this; small is enough.
        count: how many samples, instead of `fraction`.
        rule: how affinities choose, as for `vlmsel select`.
        seeds: how many times targets are halved and models tuned; intervals need at least 2.
        draws: random choices per seed, of either kind.
        epochs: passes over a choice; those of the warm-up's settings when left out.
        device: auto, cpu, cuda or cuda:<number>.
        config: the resolved configuration as text.
    """
    check_at_least_one(seeds=seeds, draws=draws)
    if processes.count() > 1:
        raise ValueError("validate runs as one process; start it without torchrun or accelerate launch")
    chosen = _read_run(Path(run))
    size = how_many(len(read_records(chosen["pool"])), fraction, count)
    folder = runs.open_run(out, config)
    runs.same_inputs(folder, {"the scores": runs.file_hash(Path(run) / "score/scores.parquet")})
    sides = _sides(Path(run), chosen, rule, size, draws, epochs, device)
    print(f"plan: {seeds * len(sides.arms)} trainings on {size} samples' tokens each, {seeds} seeds", flush=True)
    answers = Duel(sides, call).run(folder, range(seeds), sides.arms)
    found = verdict(answers)
    runs.write_json(folder / "validate.json", {**found, "count": size, "losses": answers})
    rows = [["against", "gain in held-out loss", "verdict"]]
    for kind in (RANDOM, MIXTURE):
        own = found[kind]
        rows.append([kind, f"{own['gain']:+.4f} ± {own['half_width']:.4f}", own["verdict"]])
    runs.write_text(folder / "table.md", as_markdown(rows))
    progress.ended(as_text(rows), f"{said(found)}; {folder / 'table.md'}", then=f"vlmsel report {run} {out}")


def _read_run(run: Path) -> dict[str, Any]:
    """Return the settings of a choice."""
    for file in (run / "config.yaml", run / "score/affinity.safetensors"):
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file; give the run folder of a `vlmsel choose` that is done")
    return yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))


def _sides(
    run: Path, chosen: dict[str, Any], rule: Rule, size: int, draws: int, epochs: float | None, device: str
) -> Sides:
    reading, beside = (_group(kind, chosen) for kind in (ReadingOptions, FeatureOptions))
    settings = PhaseSettings(**chosen["settings"])
    if epochs is not None:
        settings = replace(settings, epochs=epochs)
    lora = None if chosen.get("lora") is None else LoraSpec(**chosen["lora"])
    tune = {**vars(reading), "lora": lora, "device": device, "settings": lambda seed: replace(settings, seed=seed)}
    (scorer,) = load_scorers((chosen["scorer"],))
    goal = beside.target_reading(reading.reading())
    files = chosen["model"], chosen["pool"], run / "score"
    return Sides(*files, scorer.name, rule, chosen["targets"], goal, draws, size, tune, device)


def _group(kind: Any, chosen: dict[str, Any]) -> Any:
    """Return a group of options as a configuration has them."""
    return kind(**{name: chosen[name] for name in kind.__dataclass_fields__ if name in chosen})
