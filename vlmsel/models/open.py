"""Open a model by name or folder, whatever its make: one table of makes serves every command.

A new make is a file of its own and a line in `MAKES`; the first make that claims a source opens it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from vlmsel import processes
from vlmsel.data.chat import CHAT
from vlmsel.data.templates import find_template
from vlmsel.models import assembly, classifier_files, huggingface_vlm, text
from vlmsel.models.classifier import RECORD
from vlmsel.models.config import LoraSpec
from vlmsel.models.devices import PACKED, pick_device, pick_dtype
from vlmsel.models.hub import could_be_on_hub
from vlmsel.models.huggingface import has_any, kind_of, within_run
from vlmsel.models.presets import PRESETS, SAVED
from vlmsel.models.quantise import packer, quantise
from vlmsel.models.subject import Subject


class Make(NamedTuple):
    """A make of models: whether it claims a source, and how it opens it with a dtype and a template, on the CPU."""

    claims: Callable[[str], bool]
    open: Callable[[str, torch.dtype, str | None], Subject]


MAKES = [
    Make(lambda source: assembly.saved_folder(source) is not None or source in PRESETS, assembly.open_own),
    Make(lambda source: has_any(source, (RECORD,)), classifier_files.open_saved),
    Make(lambda source: kind_of(source) == "image-text", huggingface_vlm.open_image_text),
    Make(lambda source: kind_of(source) == "classifier", classifier_files.open_asked),
    Make(lambda source: kind_of(source) == "causal", text.open_causal),
    Make(lambda source: kind_of(source) == "adapter", text.open_adapter),
    Make(could_be_on_hub, text.open_from_hub),
]


def open_subject(source: str, device: str = "auto", dtype: str = "float32", template: str | None = None) -> Subject:
    """Open a model: one that we have written, a preset, or a Hugging Face model.

    Args:
        source: a run folder, a model folder (ours, Hugging Face's, or PEFT's with adapters), a preset, or the name of a
            causal language model or an image-text model on the hub.
        device: as for `pick_device`.
        dtype: float32 or bfloat16, that of the backbones; 4bit or 8bit for a base that adapters are scored on.
        template: the conversation template of a Hugging Face model.

    Raises:
        FileNotFoundError: there is no model, or files of it are missing.
        ValueError: a file is damaged, the model is of an unknown kind, or it has a template of its own.
    """
    kind, place = pick_dtype(dtype), pick_device(device)
    pack = packer(dtype, place) if dtype in PACKED else None
    source = within_run(source)
    make = make_of(source)
    if template is not None and make is not MAKES[0] and template != CHAT:
        find_template(template)
    subject = make.open(source, kind, template)
    if pack is not None:
        quantise(subject, pack)
    subject.module.to(place)
    return subject


def open_to_train(
    source: str, device: str, dtype: str, template: str | None, exif: bool | None, lora: LoraSpec | None, seed: int
) -> Subject:
    """Open a model that is to be tuned, with fresh adapters where `lora` says so, whose scale is told.

    Raises:
        FileNotFoundError, ValueError: as for `open_subject`; or the model cannot have fresh adapters.
    """
    subject = open_subject(source, device, dtype, template)
    subject.turn_pictures(exif)
    if lora is not None:
        subject.attach_lora(lora, seed, source)
        if processes.is_main():
            print(f"{source}: fresh adapters of rank {lora.r}, scaled by {lora.told()}")
    return subject


def make_of(source: str) -> Make:
    """Return the make that claims a source.

    Raises:
        FileNotFoundError: none does.
    """
    source = within_run(source)
    for make in MAKES:
        if make.claims(source):
            return make
    names = ", ".join([*PRESETS, *SAVED])
    raise FileNotFoundError(
        f"{source}: no model; give a preset ({names}), or a folder that align or tune wrote or that holds a model of "
        "transformers"
    )
