"""Phase two: tune projector and LoRA, or the whole language model, on instruction data (the selected subset)."""

from __future__ import annotations

from vlmsel.commands.phase import run_phase
from vlmsel.training.phases import PRESETS, PhaseSettings

__all__ = ["PRESETS", "tune"]


def tune(
    model: str,
    data: str,
    images: str,
    out: str,
    preset: str = "tiny-tune",
    settings: PhaseSettings = PRESETS["tiny-tune"],
    group_by_modality_length: bool = False,
    max_length: int = 2048,
    device: str = "auto",
    config: str = "",
) -> None:
    """Tune on instructions and leave the model in `out/model`; the same command goes on where it stopped.

    Args:
        model: the aligned model: the run folder of `vlmsel align`, a model folder, or a preset.
        data: instructions, a JSON file in LLaVA format, such as `vlmsel select` writes.
        images: the folder that image paths are relative to.
        out: the run folder.
        preset: the settings that `settings` starts from: tiny-tune for the embedded model, llava15-*, prismatic-* or
            hyperinf-* as published.
        settings: hyper-parameters of the phase.
        group_by_modality_length: put samples of like kind and length into one batch, as LLaVA-1.5 does.
        max_length: longest sequence in tokens, patches included; what is longer is cut.
        device: auto, cpu, cuda or cuda:<number>.
        config: the resolved configuration as text.
    """
    run_phase(model, data, images, out, settings, device, group_by_modality_length, max_length, config)
