"""Phase two: tune projector and LoRA, or the whole language model, on instruction data (the selected subset).

A text model has this phase alone: adapters, fresh ones where `lora` says so, or the whole of it.
"""

from __future__ import annotations

from vlmsel import processes, runs
from vlmsel.commands.options import ReadingOptions
from vlmsel.models.config import LoraSpec
from vlmsel.models.open import open_to_train
from vlmsel.training.phases import PRESETS, PhaseSettings, require_autocast
from vlmsel.training.run import train_on

__all__ = ["PRESETS", "tune"]


def tune(
    model: str,
    data: str,
    out: str,
    only: str | None = None,
    preset: str = "tiny-tune",
    settings: PhaseSettings = PRESETS["tiny-tune"],
    lora: LoraSpec | None = None,
    group_by_modality_length: bool = False,
    reading: ReadingOptions = ReadingOptions(),
    device: str = "auto",
    dtype: str = "float32",
    config: str = "",
) -> None:
    """Tune on instructions and leave the model in `out/model`; the same command goes on where it stopped.

    Args:
        model: the aligned model: the run folder of `vlmsel align`, a model folder, or a preset. Or a text model: such a
            folder, a Hugging Face causal language model (a folder or a name on the hub), or PEFT's adapters of one.
        data: instructions, a pool of any form, such as `vlmsel select` writes.
        out: the run folder.
        only: train on a choice from `data` that copies no record: the file that `vlmsel select --write uids` or
            `--write weights` leaves.
        preset: the settings that `settings` starts from: tiny-tune for the embedded model, tiny-llm for small text
            models, llava15-*, prismatic-* or hyperinf-* as published.
        settings: hyper-parameters of the phase.
        lora: fresh adapters, drawn with `settings.seed`, for a model that has none, such as
            `--lora.r 64 --lora.alpha 128 --lora.targets '[q_proj,v_proj]'`, or `--lora.targets all-linear`; scaled by
            alpha/r, with `--lora.rslora true` by alpha/√r.
        group_by_modality_length: put samples of like kind and length into one batch, as LLaVA-1.5 does.
        reading: how samples are read.
        device: auto, cpu, cuda or cuda:<number>.
        dtype: of what is frozen, float32 or bfloat16, which halves its memory and wants `settings.precision bfloat16`;
            what learns is float32 in any case.
        config: the resolved configuration as text.
    """
    require_autocast(dtype, settings)
    if processes.is_main():
        runs.open_run(out, config)
    if lora is not None and "lora" not in settings.train:
        raise ValueError(
            f"settings.train is {settings.train}, so that fresh adapters would not learn; leave --lora out"
        )
    place = "cpu" if processes.wants_shards() else device  # shards go to their GPUs, the whole would not fit one
    subject = open_to_train(model, place, dtype, reading.template, reading.exif, lora, settings.seed)
    pictures = "" if reading.images is None else " --images FOLDER"
    then = f"vlmsel evaluate --model {out} --task TASK --questions FILE{pictures} --out RUN"
    train_on(subject, data, reading.reading(), settings, out, group_by_modality_length, only, then)
