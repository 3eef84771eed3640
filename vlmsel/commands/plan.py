"""What the way from a pool to an evaluated model will take, before anything runs: hours, memory, disk, settings."""

from __future__ import annotations

from vlmsel import progress, runs
from vlmsel.checks import check_at_least_one
from vlmsel.commands import options
from vlmsel.models.config import LoraSpec
from vlmsel.planning.hardware import UTILISATION, find_card
from vlmsel.planning.plan import Wanted, plan_of
from vlmsel.reporting.planned import lines
from vlmsel.scorers.base import gradient_scorers
from vlmsel.scorers.load import load_scorers
from vlmsel.training.phases import PRESETS, PhaseSettings

__all__ = ["PRESETS", "plan"]


def plan(
    model: str,
    pool: str | None = None,
    samples: int | None = None,
    tokens: int | None = None,
    targets: dict[str, str] | None = None,
    target_samples: int = 300,
    scorers: tuple[str, ...] = ("HyperINF(damping=10)",),
    warmup: float = 0.05,
    fraction: float = 0.05,
    questions: int = 1000,
    card: str = "H100",
    utilisation: float = UTILISATION,
    preset: str = "tiny-tune",
    settings: PhaseSettings = PRESETS["tiny-tune"],
    lora: LoraSpec | None = None,
    blocks: str | None = None,
    dtype: str = "float32",
    reading: options.ReadingOptions = options.ReadingOptions(),
    single: options.TargetOptions = options.TargetOptions(),
    batch_tokens: int = 8192,
    fit_samples: int = 2000,
    json: str | None = None,
    config: str = "",
) -> None:
    """Say what warm-up, scoring, tuning and evaluation will take on a card. Nothing is downloaded, loaded or written.

    Args:
        model: a preset, a folder of ours, or one that holds a Hugging Face model's config.json, its weights or not.
        pool: the pool, whose lengths are looked at.
        samples: how many samples, where there is no pool yet, with `tokens`.
        tokens: tokens of each of them, its image's included.
        targets: one file per target task, such as `--targets.vqav2 FILE`.
        target_samples: how many target samples where there are no target files, as long as the pool's.
        scorers: names (HyperINF), names with settings (HyperINF(damping=10)) or import paths (my.module:MyScorer).
        warmup: share of the pool that the model is warmed up on; 0 for none.
        fraction: part of the pool that is chosen and tuned on.
        questions: how many are asked in the evaluation.
        card: H200, H100, A100-80G, RTX-4090 or CPU.
        utilisation: share of the card's rate that is reached; llava-7b reached 0.33 on an H100.
        preset: the settings that `settings` starts from, as for `vlmsel tune`.
        settings: hyper-parameters of warm-up and tuning.
        lora: fresh adapters for a model that has none, as for `vlmsel tune`.
        blocks: whose gradients count, as for `vlmsel score`.
        dtype: of the backbones, as for `vlmsel score`.
        reading: how samples are read.
        single: whether target samples count one by one.
        batch_tokens: most tokens per scoring pass of a batch.
        fit_samples: how many samples curvature is fitted on.
        json: a file to write all of it to.
        config: the resolved configuration as text.
    """
    check_at_least_one(samples=samples, tokens=tokens, target_samples=target_samples, questions=questions,
                       batch_tokens=batch_tokens, fit_samples=fit_samples)  # fmt: skip
    if not 0 <= warmup <= 1 or not 0 < fraction <= 1 or not 0 < utilisation <= 1:
        raise ValueError("warmup, fraction and utilisation are shares, between 0 and 1; 5 % is 0.05")
    wanted = Wanted(
        model=model, pool=pool, samples=samples, tokens=tokens, targets=targets or {}, target_samples=target_samples,
        scorers=tuple(gradient_scorers(load_scorers(scorers))), warmup=warmup, fraction=fraction, questions=questions,
        settings=settings, lora=lora, blocks=blocks, dtype=dtype, reading=reading.reading(),
        columns=single.columns if single.each_target else 0, batch_tokens=batch_tokens, fit=fit_samples,
        column_bytes=2 if single.columns_dtype == "float16" else 4,
    )  # fmt: skip
    found = plan_of(wanted, find_card(card), utilisation)
    *told, memory, curvature, disk, whole, advice = lines(found)
    print("\n".join(told))
    if json is not None:
        runs.write_json(json, found)
    how = "".join(f" --{name} {found['suggested'][name] or 'N'}" for name in ("batch_tokens", "fit_samples"))
    how += f" --images {reading.images}" if reading.images else ""
    then = f"vlmsel choose --model {model} --pool {pool or 'POOL'} --targets.NAME FILE --fraction {fraction:g}{how}"
    progress.ended(memory, curvature, disk, whole, advice, then=f"{then} --out RUN")
