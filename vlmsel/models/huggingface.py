"""Hugging Face models as they lie in a folder: what kind of model it is, and whether its files are there.

image-text   answers questions about images (`AutoModelForImageTextToText` with its processor)
classifier   a sequence classifier (`...ForSequenceClassification`)
causal       a causal language model
adapter      PEFT's adapters of a causal language model, which `adapter_config.json` names
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from vlmsel.models.damage import read_object

Kind = Literal["image-text", "classifier", "causal", "adapter"]
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", "spiece.model")


def has_any(folder: str | Path, names: tuple[str, ...]) -> bool:
    """Tell whether a folder holds one of these files."""
    return any((Path(folder) / name).is_file() for name in names)


def kind_of(folder: str | Path) -> Kind | None:
    """Tell from a folder's `config.json` (or `adapter_config.json`, without one) what kind of model lies in it.

    None where there is no model.

    Raises:
        ValueError: the file is damaged, or the model is of none of these kinds.
    """
    if not has_any(folder, ("config.json",)):
        return "adapter" if has_any(folder, ("adapter_config.json",)) else None
    config = read_object(Path(folder) / "config.json")
    kind, names = config.get("model_type"), [str(name) for name in config.get("architectures") or []]
    if any(name.endswith("ForSequenceClassification") for name in names):
        return "classifier"
    if kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES and not any("ForCausalLM" in name for name in names):
        return "image-text"
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "causal"
    raise ValueError(
        f"{folder}/config.json: cannot take a model of type {kind!r} ({', '.join(names) or 'no architecture'}); "
        + (
            "convert LLaVA's own checkpoints first (vlmsel convert)"
            if str(kind).startswith("llava")
            else "give an image-text-to-text model, a causal language model or a sequence classifier"
        )
    )


def within_run(source: str) -> str:
    """Return where a Hugging Face model lies: the folder itself, or `model` in it where that is a run's.

    >>> within_run("owner/name")
    'owner/name'
    """
    inside, names = Path(source) / "model", ("config.json", "adapter_config.json")
    return str(inside) if has_any(inside, names) and not has_any(source, names) else source


def only_evaluated(source: str, kind: Kind) -> str:
    """Say that a model can be asked, and not trained or scored."""
    return (
        f"{source}: a Hugging Face {kind} model can be evaluated, not trained or scored; give a causal language "
        "model, or a model that align or tune wrote"
    )


def require_text_model(folder: str) -> None:
    """Refuse a folder that lacks a tokenizer or safetensors weights.

    Raises:
        FileNotFoundError: says what is missing.
    """
    require_file(folder, TOKENIZERS, "tokenizer")
    require_weights(folder)


def require_file(folder: str, names: tuple[str, ...], what: str) -> None:
    """Refuse a folder that holds none of these files.

    Raises:
        FileNotFoundError: says what is missing.
    """
    if not has_any(folder, names):
        raise FileNotFoundError(f"{folder}: no {what} ({', '.join(names)}); copy it from the model's origin")


def require_weights(folder: str) -> None:
    """Refuse a folder without safetensors weights.

    Raises:
        FileNotFoundError: says so.
    """
    if not any(Path(folder).glob("*.safetensors")):
        raise FileNotFoundError(
            f"{folder}: no .safetensors weights; copy them there; save other formats as safetensors first"
        )
