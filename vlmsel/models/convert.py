"""Tell checkpoints apart and turn one kind into another: ours, transformers' LLaVA, LLaVA-1.5's own, Prismatic's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from vlmsel.models.assembly import open_own, saved_folder
from vlmsel.models.convert_export import export
from vlmsel.models.convert_import import Given, Parts, read_huggingface
from vlmsel.models.convert_original import (
    ADAPTER,
    OTHERS,
    PROJECTOR,
    read_lora,
    read_prismatic,
    read_stage_one,
    read_whole,
)
from vlmsel.models.convert_write import write_own
from vlmsel.models.damage import read_object
from vlmsel.models.presets import PRESETS

Target = Literal["own", "llava-hf", "llava-hf-5", "llava-1.5"]
FULL = ("pytorch_model*.bin", "*.safetensors")


def convert(source: str, to: Target, out: str | Path, given: Given, dtype: torch.dtype = torch.float32) -> None:
    """Write the model at `source` into the folder `out`, which must be new, in the form `to`.

    `given` says what others' checkpoints do not; `dtype` is what others get the weights in.

    Raises:
        FileNotFoundError: there is no model at `source`, or a part of it is missing.
        FileExistsError: `out` holds something.
        ValueError: the model cannot be brought to that form; says why.
    """
    if to == "own":
        if saved_folder(source) is not None or source in PRESETS:
            raise ValueError(f"{source} is a model of ours already; choose another --to")
        write_own(reader_of(Path(source))(Path(source), given), out)
        return
    if saved_folder(source) is None and source not in PRESETS:
        reader_of(Path(source))
        raise ValueError(f"{source}: convert it to our own form first (--to own), then that to {to}")
    if given != Given():
        raise ValueError("--language, --vision, --template and --image_mode are for --to own; leave them out")
    export(open_own(source), out, to, dtype)


def reader_of(source: Path) -> Callable[[Path, Given], Parts]:
    """Tell what kind of checkpoint lies at a path.

    Raises:
        FileNotFoundError: nothing lies there.
        ValueError: it is of no kind that is known.
    """
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such folder or file")
    if source.is_file():
        return read_prismatic if source.suffix == ".pt" else read_stage_one
    if (source / "checkpoints" / "latest-checkpoint.pt").is_file():
        return read_prismatic
    config = read_object(source / "config.json") if (source / "config.json").is_file() else {}
    if config.get("model_type") == "llava" and "vision_config" in config:
        return read_huggingface
    if (source / ADAPTER).is_file() and ((source / OTHERS).is_file() or "mm_projector_type" in config):
        return read_lora
    if "mm_projector_type" in config and any(any(source.glob(pattern)) for pattern in FULL):
        return read_whole
    if (source / PROJECTOR).is_file():
        return read_stage_one
    raise ValueError(
        f"{source}: no LLaVA checkpoint; expected transformers' (config.json of type llava), LLaVA-1.5's (config.json "
        f"with mm_projector_type, {PROJECTOR} or {OTHERS}) or Prismatic's (checkpoints/latest-checkpoint.pt)"
    )
