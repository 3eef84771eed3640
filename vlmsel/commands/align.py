"""Phase one: teach the projector (and LoRA) to say what pictures show, on captions."""

from __future__ import annotations

from pathlib import Path

from vlmsel import processes, runs
from vlmsel.data.dataset import Reading
from vlmsel.models.open import open_subject
from vlmsel.training.phases import PRESETS, PhaseSettings, require_autocast
from vlmsel.training.run import train_on

__all__ = ["PRESETS", "align"]


def align(
    data: str,
    images: str,
    out: str,
    only: str | None = None,
    model: str = "tiny",
    preset: str = "tiny-align",
    settings: PhaseSettings = PRESETS["tiny-align"],
    group_by_modality_length: bool = False,
    max_length: int = 2048,
    exif: bool | None = None,
    allow_missing: bool = False,
    device: str = "auto",
    dtype: str = "float32",
    config: str = "",
) -> None:
    """Train on captions and leave the model in `out/model`; the same command goes on where it stopped.

    Args:
        data: captions, a pool of any form.
        images: the folder that image paths are relative to.
        out: the run folder.
        only: train on a choice from `data` that copies no record, as for `vlmsel tune`.
        model: preset (tiny, llava-7b) or the folder of a model.
        preset: the settings that `settings` starts from: tiny-align for the embedded model, llava15-*, prismatic-* or
            hyperinf-* as published.
        settings: hyper-parameters of the phase.
        group_by_modality_length: put samples of like kind and length into one batch, as LLaVA-1.5 does.
        max_length: longest sequence in tokens, patches included; what is longer is cut.
        exif: turn pictures as their EXIF orientation says, or leave them; the model keeps it.
        allow_missing: go on where pictures of more than 5 % of the captions are missing.
        device: auto, cpu, cuda or cuda:<number>.
        dtype: of what is frozen, float32 or bfloat16, which halves its memory and wants `settings.precision bfloat16`;
            what learns is float32 in any case.
        config: the resolved configuration as text.
    """
    require_autocast(dtype, settings)
    if processes.is_main():
        runs.open_run(out, config)
    subject = open_subject(model, device, dtype)
    reading = Reading(Path(images), max_length, allow_missing=allow_missing)
    if subject.pictures(reading) is None:
        raise ValueError(f"{model} reads text only and has no projector to align; go on with vlmsel tune or score")
    subject.turn_pictures(exif)
    then = f"vlmsel choose --model {out} --pool POOL --images {images} --targets.NAME FILE --fraction 0.05 --out RUN"
    train_on(subject, data, reading, settings, out, group_by_modality_length, only, then)
