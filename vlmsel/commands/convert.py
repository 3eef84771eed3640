"""Between our model folders and others': transformers' LLaVA, LLaVA-1.5's own checkpoints, Prismatic's."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from vlmsel import progress, runs
from vlmsel.models import convert as conversion
from vlmsel.models.convert_import import Given

CONFIG = "vlmsel_convert.yaml"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def convert(
    model: str,
    to: conversion.Target,
    out: str,
    language: str | None = None,
    vision: str | None = None,
    template: str | None = None,
    image_mode: Literal["pad", "crop", "squash", "letterbox"] | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    config: str = "",
) -> None:
    """Write a model in another form into a new folder.

    Args:
        model: the model: a folder that align or tune wrote or a preset; or a folder of transformers' LLaVA, LLaVA-1.5's
            (whole, LoRA with non_lora_trainables.bin, or mm_projector.bin) or a checkpoint of Prismatic's.
        to: own (what all other commands take), llava-hf (`LlavaForConditionalGeneration` with its processor, as on the
            hub), llava-hf-5 (with the names that transformers 5 has in memory) or llava-1.5 (LLaVA's own code).
        out: the folder, which must be new. Adapters are merged into what others get.
        language: the language model of a checkpoint that holds none, or does not describe it: a folder or a hub name.
        vision: the vision tower of a checkpoint that holds none: a folder with Hugging Face's CLIP, or
            openai/clip-vit-large-patch14-336.
        template: the conversation template that others' model was trained with; what its files say when left out, else
            vicuna_v1.
        image_mode: how its pictures are brought to a square; as its files say when left out.
        dtype: of the weights that others get, rounded once after adapters were merged in float32.
        config: the resolved configuration as text, which stays in the folder.
    """
    conversion.convert(model, to, out, Given(language, vision, template, image_mode), DTYPES[dtype])
    runs.write_text(Path(out) / CONFIG, config)
    use = "vlmsel score, tune or evaluate --model" if to == "own" else "from_pretrained"
    if to == "llava-1.5":
        use = "LLaVA's load_pretrained_model"
    then = f"vlmsel inspect {out}" if to == "own" else ""
    progress.ended(f"{model} as {to}: {out}; open it with {use} {out}", then=then)
