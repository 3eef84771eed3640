"""Put a vision-language or text model together: from pretrained backbones, from parts in memory, or as it was saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlmsel.models import checkpoint
from vlmsel.models.config import VLMConfig
from vlmsel.models.fingerprints import fingerprint
from vlmsel.models.language import load_language, load_tokenizer, shape_language
from vlmsel.models.lora import attach_lora
from vlmsel.models.presets import preset
from vlmsel.models.projector import build_projector
from vlmsel.models.vision import VisionTower, load_vision, shape_vision
from vlmsel.models.vlm import VLM


def build(
    config: VLMConfig, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", seed: int = 0
) -> VLM:
    """Build a model from pretrained backbones with a fresh projector and fresh adapters.

    `dtype` is that of the frozen backbones; projector and adapters are float32, which training needs. On device `meta`
    the model has shapes and no weights (nothing is loaded): for counting. `seed` draws the adapters.

    Raises:
        FileNotFoundError, ValueError: a backbone cannot be found or used; the message names it.
    """
    if str(device) == "meta":
        vision = None if config.vision is None else shape_vision(config)
        language, tokenizer = shape_language(config.language), None
    else:
        vision = None if config.vision is None else load_vision(config, dtype)
        language = load_language(config.language, dtype)
        tokenizer = load_tokenizer(config.language)
    return assemble(config, vision, language, tokenizer, seed).to(device)


def assemble(
    config: VLMConfig, vision: VisionTower | None, language_model: Any, tokenizer: Any = None, seed: int = 0
) -> VLM:
    """Put loaded backbones together: freeze them, attach adapters to the language model, add a fresh projector."""
    language_model.requires_grad_(False).eval()
    embedding = language_model.get_input_embeddings().weight
    source = "meta" if embedding.is_meta else "cpu"
    projector = nn.Sequential()
    if vision is not None:
        projector = build_projector(config.projector, vision.width, embedding.shape[1], config.projector_seed, source)
    eyes = "" if vision is None or embedding.is_meta else fingerprint(vision)  # no eyes make no statement
    prints = {} if embedding.is_meta else {"vision": eyes, "language": fingerprint(language_model)}
    if config.lora is not None:
        language_model = attach_lora(language_model, config.lora, seed)
    model = VLM(config, vision, projector, language_model, tokenizer)
    model.fingerprints = prints
    return model.eval()


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
        load_language(str(language) if config.language_trained else config.language, dtype),
        load_tokenizer(str(tokenizer) if tokenizer.is_dir() else config.language),
    )
    checkpoint.check_backbones(model, recorded)
    checkpoint.load_parts(model, folder, config)
    return model.to(device)


def saved_folder(source: str) -> Path | None:
    """Return where a model that we have written lies: the folder `source`, or `model` in the run folder `source`."""
    folders = (Path(source), Path(source) / "model")
    return next((folder for folder in folders if (folder / checkpoint.CONFIG).is_file()), None)


def open_own(source: str, dtype: torch.dtype = torch.float32, template: str | None = None) -> VLM:
    """Load a model that we have written, or build a preset.

    Raises:
        FileNotFoundError, ValueError: it cannot be loaded, or has another template.
    """
    folder = saved_folder(source)
    model = build(preset(source), dtype) if folder is None else load(folder, dtype)
    if template not in (None, model.vlm_config.template):
        raise ValueError(f"{source} has the template {model.vlm_config.template}; leave --template out")
    return model
