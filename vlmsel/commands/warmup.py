"""Warm-up: tune on a small random part of the pool, so that gradients tell samples apart when the pool is scored."""

from __future__ import annotations

from pathlib import Path

from vlmsel import processes, progress, runs
from vlmsel.checks import check_at_least_one
from vlmsel.commands.options import FeatureOptions, ReadingOptions
from vlmsel.data.formats import pool_digest, write_part
from vlmsel.models.config import LoraSpec
from vlmsel.models.open import open_to_train
from vlmsel.models.pool import Pool, open_pool
from vlmsel.models.subject import Subject
from vlmsel.training.phases import PRESETS, PhaseSettings, require_autocast
from vlmsel.training.run import train_on
from vlmsel.training.warmup import LEAST, RECORD, draw_part, mean_loss, part_size

__all__ = ["PRESETS", "warmup"]


def warmup(
    model: str,
    pool: str,
    out: str,
    only: str | None = None,
    targets: dict[str, str] | None = None,
    fraction: float = 0.05,
    least: int = LEAST,
    seed: int = 0,
    preset: str = "tiny-tune",
    settings: PhaseSettings = PRESETS["tiny-tune"],
    lora: LoraSpec | None = None,
    reading: ReadingOptions = ReadingOptions(),
    beside: FeatureOptions = FeatureOptions(),
    device: str = "auto",
    dtype: str = "float32",
    config: str = "",
) -> None:
    """Tune on a random part of the pool and leave the model in `out/model`: score there, and tune the first model on
    what is chosen.

    `out/warmup.json` has the uids of the part and the mean loss on every target file before and after.

    Args:
        model: as for `vlmsel tune`.
        pool: the pool that is to be scored.
        out: the run folder.
        only: draw from a choice of the pool alone, as for `vlmsel tune`.
        targets: target files by name, to see what they gain.
        fraction: share of the pool that is drawn, in equal proportion from every source.
        least: how many samples at least.
        seed: draws the part.
        preset: the settings that `settings` starts from, as for `vlmsel tune`.
        settings: hyper-parameters of the training.
        lora: fresh adapters for a model that has none, as for `vlmsel tune`.
        reading: how samples are read.
        beside: what is read beside the pool.
        device: auto, cpu, cuda or cuda:<number>.
        dtype: of what is frozen, float32 or bfloat16, which halves its memory and wants `settings.precision bfloat16`;
            what learns is float32 in any case.
        config: the resolved configuration as text.
    """
    check_at_least_one(least=least)
    require_autocast(dtype, settings)
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must lie in (0, 1], got {fraction}")
    folder = Path(out)
    if processes.is_main():
        runs.open_run(out, config)
    subject = open_to_train(model, device, dtype, reading.template, reading.exif, lora, settings.seed)
    read = reading.reading()
    found = open_pool(subject, pool, read, measured=False, only=only)
    usable, known = found.samples.candidates(), found.samples.uids
    sources = found.samples.sources
    drawn = draw_part([sources[position] for position in usable], part_size(len(usable), fraction, least), seed)
    uids = [known[position] for position in found.samples.lengths_of([usable[number] for number in drawn])]
    goals = {name: open_pool(subject, file, beside.target_reading(read)) for name, file in (targets or {}).items()}
    before = _losses(subject, goals)
    part = folder / f"part{''.join(Path(pool).suffixes[-1:])}"
    if processes.is_main():
        write_part(part, pool, uids)
    processes.wait()
    result = train_on(subject, part, read, settings, out)
    after = _losses(subject, goals)
    if processes.is_main():
        about = {
            "pool": pool,
            "pool_sha256": pool_digest(pool) if only else found.sha256,
            "uids": uids,
            "steps": result.steps,
        }
        runs.write_json(folder / RECORD, {**about, "loss_before": before, "loss_after": after})
    told = (
        f"target {name}: mean loss {before[name]:.3f} before, {after[name]:.3f} after the warm-up" for name in goals
    )
    progress.ended(*told, then=f"vlmsel score --model {out} --pool {pool} --targets.NAME FILE --out RUN")


def _losses(subject: Subject, goals: dict[str, Pool]) -> dict[str, float]:
    return {name: mean_loss(subject, goal.samples) for name, goal in goals.items()}
