"""Open a Hugging Face image-text-to-text model with its processor, from a folder or the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from vlmsel.models.damage import loading, read_object
from vlmsel.models.huggingface import has_any, require_file, require_text_model
from vlmsel.models.image_text import ImageText
from vlmsel.models.image_text_files import READING
from vlmsel.models.language import load_pretrained, quiet_transformers

PROCESSORS = ("processor_config.json", "preprocessor_config.json")


def open_image_text(
    source: str, dtype: torch.dtype = torch.float32, template: str | None = None, beside: str | None = None
) -> ImageText:
    """Load an image-text-to-text model and its processor from a folder, or the processor from another one, `beside`.

    Raises:
        FileNotFoundError: weights, processor or tokenizer are missing.
        ValueError: a file is damaged, or the model is an encoder-decoder, whose output holds no prompt.
    """
    home = beside or source
    if Path(home).is_dir():
        require_file(home, PROCESSORS, "image processor")
        for name in PROCESSORS:
            if (Path(home) / name).is_file():
                read_object(Path(home) / name)
        require_text_model(source)
    model = load_pretrained(transformers.AutoModelForImageTextToText, "image-text model", source, dtype)
    if model.config.is_encoder_decoder:
        raise ValueError(f"{source}: {type(model).__name__} is an encoder-decoder; give a decoder-only model")
    processor = open_processor(home)
    complete(processor, model.config, home)
    model.requires_grad_(False)
    return read_as_saved(ImageText(model, processor, template, source), home).eval()


def open_processor(home: str) -> Any:
    try:
        with quiet_transformers(), loading("processor", home):
            processor = transformers.AutoProcessor.from_pretrained(home)
    except ImportError as problem:
        raise ValueError(f"{home}: its processor needs a package ({' '.join(str(problem).split())})") from None
    if not hasattr(processor, "image_processor"):
        raise ValueError(f"{home} has no image processor; copy {' or '.join(PROCESSORS)} too")
    return processor


def read_as_saved(subject: ImageText, home: str) -> ImageText:
    """Take over how a model that was tuned here read its samples; another template that was asked for wins."""
    if has_any(home, (READING,)):
        about = read_object(Path(home) / READING)
        subject.template, subject.exif = subject.template or about.get("template"), bool(about.get("exif"))
    return subject


def complete(processor: Any, config: Any, home: str) -> None:
    """Give a processor, whose older files leave it to the model, what it counts an image's places by.

    Raises:
        ValueError: the model does not say it either.
    """
    names = ("patch_size", "vision_feature_select_strategy")
    if all(getattr(processor, name, "none needed") is not None for name in names):
        return
    vision: Any = getattr(config, "vision_config", None)
    if getattr(vision, "patch_size", None) is None:
        raise ValueError(f"{home}: {PROCESSORS[0]} has no patch_size, and the model does not say it; set it")
    processor.patch_size = vision.patch_size
    processor.vision_feature_select_strategy = kept = getattr(config, "vision_feature_select_strategy", "default")
    # CLIP's towers have a class token, which "default" takes away
    processor.num_additional_image_tokens = int(kept == "default" or vision.model_type == "clip_vision_model")
