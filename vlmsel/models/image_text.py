"""A Hugging Face image-text-to-text model with its processor, which answers questions about images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from vlmsel.models.damage import loading, read_object
from vlmsel.models.huggingface import only_evaluated, require_file, require_text_model
from vlmsel.models.language import load_pretrained, quiet_transformers
from vlmsel.models.subject import OnlyEvaluated

PROCESSORS = ("processor_config.json", "preprocessor_config.json")


class ImageText(OnlyEvaluated):
    """A model with the processor that handles its images; it can be evaluated only.

    `template` is the one of ours that it is asked with, None for its processor's own.
    """

    def __init__(self, model: Any, processor: Any, template: str | None = None, source: str = "this model") -> None:
        self.model, self.processor, self.tokenizer = model, processor, processor.tokenizer
        self.template, self.refusal = template, only_evaluated(source, "image-text")

    @property
    def module(self) -> nn.Module:
        return self.model

    @property
    def backbone(self) -> Any:
        return self.model

    def reads(self) -> Any:
        """Return how it is asked, what its processor makes of pictures, and how it generates."""
        how = self.template, self.processor.chat_template, self.model.generation_config.to_dict()
        return how, sorted((name, repr(value)) for name, value in self.processor.image_processor.to_dict().items())


def open_image_text(
    source: str, dtype: torch.dtype = torch.float32, template: str | None = None, beside: str | None = None
) -> ImageText:
    """Load an image-text-to-text model and its processor from a folder, or the processor from another one, `beside`.

    Raises:
        FileNotFoundError: weights, processor or tokenizer are missing.
        ValueError: a file is damaged, or the model is an encoder-decoder, whose output holds no prompt.
    """
    home = beside or source
    require_file(home, PROCESSORS, "image processor")
    for name in PROCESSORS:
        if (Path(home) / name).is_file():
            read_object(Path(home) / name)
    require_text_model(source)
    model = load_pretrained(transformers.AutoModelForImageTextToText, "image-text model", source, dtype)
    if model.config.is_encoder_decoder:
        raise ValueError(f"{source}: {type(model).__name__} is an encoder-decoder; give a decoder-only model")
    with quiet_transformers(), loading("processor", home):
        processor = transformers.AutoProcessor.from_pretrained(home)
    if not hasattr(processor, "image_processor"):
        raise ValueError(f"{home} has no image processor; copy {' or '.join(PROCESSORS)} too")
    complete(processor, model.config, home)
    return ImageText(model.eval(), processor, template, source)


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
