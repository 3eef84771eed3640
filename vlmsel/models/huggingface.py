"""Hugging Face models of other kinds than ours, as they lie in a folder: what kind it is, and loading it.

image-text   answers questions about images (`AutoModelForImageTextToText` with its processor)
classifier   a sequence classifier (`...ForSequenceClassification`)
causal       a causal language model
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from vlmsel.models.damage import loading, read_object
from vlmsel.models.language import load_pretrained

Kind = Literal["image-text", "classifier", "causal"]


def kind_of(folder: str | Path) -> Kind:
    """Tell from a folder's `config.json` what kind of model lies in it.

    Raises:
        FileNotFoundError: there is no `config.json`.
        ValueError: it is a model of none of the three kinds.
    """
    config = read_object(Path(folder) / "config.json")
    kind, names = config.get("model_type"), config.get("architectures") or []
    if any(str(name).endswith("ForSequenceClassification") for name in names):
        return "classifier"
    if kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES and not any("ForCausalLM" in str(name) for name in names):
        return "image-text"
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "causal"
    raise ValueError(
        f"{folder}: cannot evaluate a model of type {kind!r} ({', '.join(map(str, names)) or 'no architecture'}); give "
        "an image-text-to-text model, a causal language model or a sequence classifier"
    )


def load_image_text(folder: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Load an image-text-to-text model and its processor.

    Raises:
        ValueError: a file is damaged or missing.
    """
    model = load_pretrained(transformers.AutoModelForImageTextToText, "image-text model", folder, dtype)
    with loading("processor", folder):
        processor = transformers.AutoProcessor.from_pretrained(folder)
    if not hasattr(processor, "image_processor"):
        raise ValueError(f"{folder} has no image processor; copy processor_config.json and its like too")
    return model.eval(), processor


def load_classifier(folder: str, dtype: torch.dtype = torch.float32) -> Any:
    """Load a sequence classifier.

    Raises:
        ValueError: a file is damaged or missing, its head included.
    """
    auto = transformers.AutoModelForSequenceClassification
    return load_pretrained(auto, "sequence classifier", folder, dtype).eval()
