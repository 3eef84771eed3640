"""Hugging Face models of other kinds than ours, as they lie in a folder: what kind it is, and loading it.

image-text   answers questions about images (`AutoModelForImageTextToText` with its processor)
classifier   a sequence classifier (`...ForSequenceClassification`)
causal       a causal language model
adapter      PEFT's adapters of a causal language model, which `adapter_config.json` names
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from peft import PeftModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from vlmsel.models.config import resolve
from vlmsel.models.damage import check_folder, loading, read_object
from vlmsel.models.language import load_language, load_pretrained, load_tokenizer, quiet_transformers
from vlmsel.models.lora import quiet_peft

Kind = Literal["image-text", "classifier", "causal", "adapter"]
CONFIGS = ("config.json", "adapter_config.json")
PROCESSORS = ("processor_config.json", "preprocessor_config.json")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", "spiece.model")


def is_hugging_face(folder: str | Path) -> bool:
    """Tell whether a folder holds a Hugging Face model, or adapters of one."""
    return any((Path(folder) / name).is_file() for name in CONFIGS)


def kind_of(folder: str | Path) -> Kind:
    """Tell from a folder's `config.json` (or `adapter_config.json`, without one) what kind of model lies in it.

    Raises:
        FileNotFoundError: there is no `config.json`.
        ValueError: it is a model of none of these kinds.
    """
    if not (Path(folder) / "config.json").is_file() and (Path(folder) / "adapter_config.json").is_file():
        return "adapter"
    config = read_object(Path(folder) / "config.json")
    kind, names = config.get("model_type"), [str(name) for name in config.get("architectures") or []]
    if any(name.endswith("ForSequenceClassification") for name in names):
        return "classifier"
    if kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES and not any("ForCausalLM" in name for name in names):
        return "image-text"
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "causal"
    raise ValueError(
        f"{folder}/config.json: cannot evaluate a model of type {kind!r} ({', '.join(names) or 'no architecture'}); "
        + (
            "convert LLaVA's own checkpoints to Hugging Face's format first"
            if str(kind).startswith("llava")
            else "give an image-text-to-text model, a causal language model or a sequence classifier"
        )
    )


def load_image_text(folder: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Load an image-text-to-text model and its processor.

    Raises:
        FileNotFoundError: weights, processor or tokenizer are missing.
        ValueError: a file is damaged, or the model is an encoder-decoder, whose output holds no prompt.
    """
    _require(folder, PROCESSORS, "image processor")
    _require(folder, TOKENIZERS, "tokenizer")
    for name in PROCESSORS:
        if (Path(folder) / name).is_file():
            read_object(Path(folder) / name)
    _require_weights(folder)
    model = load_pretrained(transformers.AutoModelForImageTextToText, "image-text model", folder, dtype)
    if model.config.is_encoder_decoder:
        raise ValueError(f"{folder}: {type(model).__name__} is an encoder-decoder; give a decoder-only model")
    with quiet_transformers(), loading("processor", folder):
        processor = transformers.AutoProcessor.from_pretrained(folder)
    if not hasattr(processor, "image_processor"):
        raise ValueError(f"{folder} has no image processor; copy {' or '.join(PROCESSORS)} too")
    return model.eval(), processor


def load_classifier(folder: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Load a sequence classifier and its tokenizer.

    Raises:
        FileNotFoundError: weights or tokenizer are missing.
        ValueError: a file is damaged, or weights are missing in the files, those of the head included.
    """
    require_text_model(folder)
    auto = transformers.AutoModelForSequenceClassification
    return load_pretrained(auto, "sequence classifier", folder, dtype).eval(), load_tokenizer(folder)


def load_causal(folder: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Load a causal language model and its tokenizer.

    Raises:
        FileNotFoundError: weights or tokenizer are missing.
        ValueError: a file is damaged, or weights are missing in the files.
    """
    require_text_model(folder)
    return load_language(folder, dtype).eval(), load_tokenizer(folder)


def load_adapter(folder: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Load PEFT's adapters with the causal language model that they name, and the tokenizer of that folder or this.

    Raises:
        FileNotFoundError: the adapters' weights or the model are missing.
        ValueError: the adapters are of another kind of model, or a file is damaged.
    """
    file = Path(folder) / "adapter_config.json"
    config = read_object(file)
    if (task := config.get("task_type")) not in (None, "CAUSAL_LM"):
        raise ValueError(f"{file}: adapters of task type {task} cannot be evaluated; merge them into their model first")
    base = resolve(str(config.get("base_model_name_or_path")))
    if not Path(base).is_dir():
        raise FileNotFoundError(
            f"{file}: base_model_name_or_path is {base}, and there is no such folder; mend the path"
        )
    _require_weights(folder)
    check_folder(Path(folder))
    model, tokenizer = load_causal(base, dtype)
    with quiet_transformers(), quiet_peft(), loading("adapters", folder):
        adapted = PeftModel.from_pretrained(model, folder)
    own = any((Path(folder) / name).is_file() for name in TOKENIZERS)
    return adapted.eval(), load_tokenizer(folder) if own else tokenizer


def require_text_model(folder: str) -> None:
    """Refuse a folder that lacks a tokenizer or safetensors weights.

    Raises:
        FileNotFoundError: says what is missing.
    """
    _require(folder, TOKENIZERS, "tokenizer")
    _require_weights(folder)


def _require(folder: str, names: tuple[str, ...], what: str) -> None:
    if not any((Path(folder) / name).is_file() for name in names):
        raise FileNotFoundError(f"{folder}: no {what} ({', '.join(names)}); copy it from the model's origin")


def _require_weights(folder: str) -> None:
    if not any(Path(folder).glob("*.safetensors")):
        raise FileNotFoundError(
            f"{folder}: no .safetensors weights; copy them there; save other formats as safetensors first"
        )
