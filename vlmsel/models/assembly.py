"""Put a vision-language or text model together: from pretrained backbones, from parts in memory, or as it was saved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlmsel.models import checkpoint
from vlmsel.models.config import VLMConfig, resolve
from vlmsel.models.hub import local
from vlmsel.models.language import load_language, load_tokenizer
from vlmsel.models.lora import attach_lora, named
from vlmsel.models.presets import PRESETS, SAVED
from vlmsel.models.projector import build_projector
from vlmsel.models.vision import VisionTower, load_vision
from vlmsel.models.vlm import VLM


def build(
    config: VLMConfig, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", seed: int = 0
) -> VLM:
    """Build a model from pretrained backbones with a fresh projector and fresh adapters.

    `dtype` is that of the frozen backbones; projector and adapters are float32, which training needs. `seed` draws the
    adapters.

    Raises:
        FileNotFoundError, ValueError: a backbone cannot be found or used; the message names it.
    """
    vision = None if config.vision is None else load_vision(config, dtype)
    source = local(config.language)
    language, tokenizer = load_language(source, dtype), load_tokenizer(source)
    return assemble(config, vision, language, tokenizer, seed).to(device)


def assemble(
    config: VLMConfig, vision: VisionTower | None, language_model: Any, tokenizer: Any = None, seed: int = 0
) -> VLM:
    """Put loaded backbones together: freeze them, attach adapters to the language model, add a fresh projector."""
    language_model.requires_grad_(False).eval()
    projector = nn.Sequential()
    if vision is not None:
        width = language_model.get_input_embeddings().weight.shape[1]
        projector = build_projector(config.projector, vision.width, width, config.projector_seed)
    if config.lora is not None:
        spec = named(language_model, config.lora)
        config, language_model = replace(config, lora=spec), attach_lora(language_model, spec, seed)
    return VLM(config, vision, projector, language_model, tokenizer).eval()


def load(folder: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> VLM:
    """Build the model that `VLM.save` wrote, in eval mode; `dtype` is that of the backbones, trained parts keep theirs.

    Raises:
        FileNotFoundError: `folder` is no saved model, or a file or a backbone is missing.
        ValueError: the files do not fit each other, or a backbone has changed since the model was trained.
    """
    folder = Path(folder)
    config, recorded = checkpoint.read_config(folder)
    language, tokenizer = folder / checkpoint.LANGUAGE, folder / checkpoint.TOKENIZER
    model = assemble(
        config,
        None if config.vision is None else load_vision(config, dtype),
        load_language(str(language) if config.language_trained else local(config.language), dtype),
        load_tokenizer(str(tokenizer) if tokenizer.is_dir() else local(config.language)),
    )
    checkpoint.check_backbones(model, recorded)
    checkpoint.load_parts(model, folder, config)
    return model.to(device)


def saved_folder(source: str) -> Path | None:
    """Return where a model that we have written lies: the folder `source`, or `model` in the run folder `source`."""
    source = resolve(SAVED.get(source, source))
    folders = (Path(source), Path(source) / "model")
    return next((folder for folder in folders if (folder / checkpoint.CONFIG).is_file()), None)


def open_own(source: str, dtype: torch.dtype = torch.float32, template: str | None = None) -> VLM:
    """Load a model that we have written, or build a preset.

    Raises:
        FileNotFoundError, ValueError: it cannot be loaded, or has another template.
    """
    folder = saved_folder(source)
    model = build(PRESETS[source], dtype) if folder is None else load(folder, dtype)
    if template not in (None, model.vlm_config.template):
        raise ValueError(f"{source} has the template {model.vlm_config.template}; leave --template out")
    return model
