"""The whole choice in one command: warm-up, score, select, each the ordinary command in a folder of its own."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from vlmsel import processes, progress, runs
from vlmsel.commands import options
from vlmsel.commands.call import call
from vlmsel.data.formats import read_records
from vlmsel.models.config import LoraSpec
from vlmsel.planning.choosing import check_scorer, tell_choice
from vlmsel.scorers.load import load_scorers
from vlmsel.scoring.table import check_target_names
from vlmsel.selection import AffinityRule, Ask
from vlmsel.training.phases import PRESETS, PhaseSettings
from vlmsel.training.warmup import LEAST

__all__ = ["PRESETS", "choose"]


def choose(
    out: str,
    model: str,
    pool: str,
    targets: dict[str, str] | None = None,
    against: str | list[str] | None = None,
    scorer: str = "HyperINF(damping=10)",
    warmup: float = 0.05,
    seed: int = 0,
    preset: str = "tiny-tune",
    settings: PhaseSettings = PRESETS["tiny-tune"],
    lora: LoraSpec | None = None,
    blocks: str | None = None,
    ask: Ask = Ask(),
    rule: Literal["round_robin", "herding", "strata"] = "round_robin",
    affinities: AffinityRule = AffinityRule(),
    reading: options.ReadingOptions = options.ReadingOptions(),
    beside: options.FeatureOptions = options.FeatureOptions(),
    batches: options.BatchOptions = options.BatchOptions(),
    fit_samples: int | None = 2000,
    place: options.PlaceOptions = options.PlaceOptions(),
    dtype: str = "float32",
    config: str = "",
) -> None:
    """Choose what to fine-tune on, `out/chosen.<ext>` in the pool's own form; the command goes on where it stopped.

    The warmed-up model in `out/warmup` only scores; tune the model itself on the choice.

    Args:
        out: the run folder; `warmup/` and `score/` in it are run folders of these commands.
        model: the model that will be tuned, as for `vlmsel tune`.
        pool: the samples to choose from.
        targets: one file per target task, such as `--targets.vqav2 FILE`.
        against: an evaluation file, or a list of them: it is told which target samples ask what it asks.
        scorer: whose affinities decide.
        warmup: share of the pool that the model is warmed up on; 0 for none.
        seed: draws the warm-up's part and the fit samples; `settings.seed` its order.
        preset: the settings that `settings` starts from, as for `vlmsel tune`.
        settings: hyper-parameters of the warm-up.
        lora: fresh adapters for a model that has none, as for `vlmsel tune`.
        blocks: whose gradients count, as for `vlmsel score`.
        ask: how much to choose.
        rule: how affinities choose, as for `vlmsel select`.
        affinities: how affinities decide.
        reading: how samples are read.
        beside: what is read beside the pool.
        batches: how samples are put into batches.
        fit_samples: how many samples curvature is fitted on; all when null.
        place: where it runs.
        dtype: of what is frozen, float32 or bfloat16, as for `vlmsel warmup` and `vlmsel score`.
        config: the resolved configuration as text.
    """
    (one,), files = load_scorers((scorer,)), dict(check_target_names(targets or {}))
    check_scorer(one, Path(out), settings if warmup else None)
    ask.check()
    if not 0 <= warmup <= 1:
        raise ValueError(f"warmup is the share of the pool that the model is warmed up on, in [0, 1]; got {warmup}")
    if lora is not None and warmup == 0:
        raise ValueError("fresh adapters (--lora) get their gradients from a warm-up; leave them out or --warmup 0.05")
    folder = Path(out)
    if processes.is_main():
        runs.open_run(out, config)
        tell_choice(pool, files, against, warmup, settings, ask, one)
    read = {**_flat(reading), **_flat(beside)}
    first = model
    if warmup > 0:
        tuned = {**read, "lora": lora, "settings": settings, "seed": seed, "device": place.device, "dtype": dtype}
        tuned.pop("features")
        call("warmup", folder / "warmup", model=model, pool=pool, targets=files, fraction=warmup, least=LEAST, **tuned)
        first = str(folder / "warmup")
    how = read | _flat(batches) | _flat(place) | {"blocks": blocks, "fit_samples": fit_samples, "dtype": dtype}
    call("score", folder / "score", model=first, pool=pool, targets=files, scorers=(scorer,), seed=seed, **how)
    if processes.is_main():
        chosen = folder / f"chosen{''.join(Path(pool).suffixes[-1:])}"
        how = {**_flat(ask), "rule": rule, **_flat(affinities)}
        call("select", chosen, pool=pool, scores=str(folder / "score"), scorer=one.name, **how)
        more = ("" if reading.images is None else f" --images {reading.images}") + (lora.options() if lora else "")
        more += "" if preset == "tiny-tune" else f" --preset {preset}"
        progress.ended(
            f"choice: {chosen}; is it better than a random one? vlmsel validate --run {out} --count "
            f"{_trial(pool, chosen)} --out DUEL",
            then=f"vlmsel tune --model {model} --data {chosen}{more} --out {folder / 'tune'}",
        )


def _trial(pool: str, chosen: Path) -> int:
    """Return how many samples tell a choice from a random one, cheaply: 1 % of the pool, but enough to learn from."""
    of_choice = len(runs.read_json(f"{chosen}.manifest.json")["uids"])
    return min(of_choice, max(LEAST, len(read_records(pool)) // 100))


def _flat(group: Any) -> dict[str, Any]:
    """Return a group's options by name."""
    return asdict(group)
