"""A Hugging Face causal language model, or PEFT's adapters of one, as a `VLM` that reads text only.

Adapters are put in by PEFT itself, whatever their kind. Those that `LoraSpec` can describe become our own; with
everything else that PEFT knows (other methods, ranks by layer, trained biases, whole modules, initialisations that
change the model's own weights) a model can be evaluated only, because that would be lost when the model is trained and
saved. What a setting means must be known here for adapters to be taken as our own.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import torch
from torch import nn

from vlmsel.data.chat import CHAT
from vlmsel.models.adapter_settings import foreign_setting, spec_of
from vlmsel.models.assembly import build
from vlmsel.models.config import VLMConfig, resolve
from vlmsel.models.damage import check_folder, loading, read_object, read_weights
from vlmsel.models.hub import could_be_on_hub, fetched, local
from vlmsel.models.huggingface import TOKENIZERS, has_any, kind_of, require_text_model, require_weights
from vlmsel.models.huggingface_vlm import PROCESSORS, open_image_text, read_as_saved
from vlmsel.models.image_text import ImageText
from vlmsel.models.image_text_files import check_base
from vlmsel.models.language import load_tokenizer, quiet_transformers
from vlmsel.models.lora import adapts_all, quiet_peft
from vlmsel.models.subject import OnlyEvaluated, Subject
from vlmsel.models.vlm import VLM

TEMPLATE = "text"
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


class AskedText(OnlyEvaluated, VLM):
    """A language model with adapters that can be evaluated only."""


def open_causal(
    source: str, dtype: torch.dtype = torch.float32, template: str | None = None, name: str | None = None
) -> VLM:
    """Build a text model of a folder with a Hugging Face causal language model, which goes by `name` when it is saved.

    It is read with its tokenizer's own chat template where it has one and no other is named.

    Raises:
        FileNotFoundError: weights or tokenizer are missing.
        ValueError: a file is damaged, or the model is of a kind that is not supported.
    """
    require_text_model(source)
    return build(VLMConfig(vision=None, language=name or source, template=template or own_template(source)), dtype)


def own_template(source: str) -> str:
    """Return `chat` where the tokenizer in a folder has a chat template, else `text`."""
    return CHAT if getattr(load_tokenizer(source), "chat_template", None) else TEMPLATE


def open_from_hub(source: str, dtype: torch.dtype = torch.float32, template: str | None = None) -> Subject:
    """Build a model of the hub's, a causal language model or one that sees.

    Raises:
        FileNotFoundError: it cannot be loaded; the line also says what else the name could be.
        ValueError: it is of another kind.
    """
    print(f"{source}: no folder of this name; looking for it on the hub", flush=True)
    folder = fetched(source)
    kind = kind_of(folder)
    if kind == "image-text":
        found = open_image_text(folder, dtype, template)
        found.source = source
        return found
    if kind == "causal":
        return open_causal(folder, dtype, template, source)
    if kind == "adapter":
        return open_adapter(folder, dtype, template)
    raise ValueError(f"{source}: a {kind or 'folder without a'} model; give a causal language model or one that sees")


def open_adapter(source: str, dtype: torch.dtype = torch.float32, template: str | None = None) -> VLM | ImageText:
    """Build the model that adapters in a folder were made for, with these adapters.

    Raises:
        FileNotFoundError: the adapters' weights or their model are missing.
        ValueError: the adapters are of another kind of model, or their files do not fit each other.
    """
    folder = Path(source)
    content = read_object(folder / ADAPTER)
    if (task := content.get("task_type")) not in (None, "CAUSAL_LM"):
        raise ValueError(
            f"{folder / ADAPTER}: adapters of task type {task} cannot be evaluated; merge them into their model first"
        )
    base = content.get("base_model_name_or_path")
    if not isinstance(base, str) or not (Path(resolve(base)).is_dir() or could_be_on_hub(base)):
        raise FileNotFoundError(
            f"{folder / ADAPTER}: base_model_name_or_path is {base}, and there is no such folder; mend the path"
        )
    require_weights(source)
    check_folder(folder)
    try:
        there = local(resolve(base))
    except FileNotFoundError as problem:
        raise FileNotFoundError(f"{folder / ADAPTER}: base_model_name_or_path: {problem}") from None
    if kind_of(there) == "image-text":
        return _adapted_image_text(folder, content, there, dtype, template)
    home = source if has_any(source, TOKENIZERS) else there
    config = VLMConfig(vision=None, language=base, template=template or own_template(home))
    plain = build(config, dtype)
    adapted, beside = _put_in(plain.language_model, folder)
    lost = _lost(content, adapted) or (f"weights of {beside[0]}" if beside else "")
    config = replace(config, lora=None if lost else spec_of(content))
    tokenizer = load_tokenizer(source) if has_any(source, TOKENIZERS) else plain.tokenizer
    model = (AskedText if lost else VLM)(config, None, nn.Sequential(), adapted, tokenizer)
    if isinstance(model, AskedText):
        model.refusal = (
            f"{folder / ADAPTER}: adapters with {lost} cannot be kept; merge them into their model (PEFT's "
            "merge_and_unload) and give that"
        )
    return model.eval()


def _adapted_image_text(
    folder: Path, content: dict[str, Any], base: str, dtype: torch.dtype, template: str | None
) -> ImageText:
    """Put adapters, and other modules that PEFT keeps with them, into an image-text model; PEFT saves them again.

    Raises:
        ValueError: they were made for another model.
    """
    asked = open_image_text(base, dtype, template, str(folder) if has_any(folder, PROCESSORS) else None)
    try:
        adapted, beside = _put_in(asked.model, folder)
        if beside:
            raise ValueError(f"{folder}: {len(beside)} weights are of none of its adapters, the first is {beside[0]}")
    except ValueError as problem:
        raise ValueError(f"{problem}; adapters of {base}, which {ADAPTER} names, were expected") from None
    adapted.requires_grad_(False)
    found = read_as_saved(ImageText(adapted, asked.processor, template, base), str(folder))
    if (init := content.get("init_lora_weights", True)) not in (True, False, "gaussian"):
        found.refusal = (
            f"{folder / ADAPTER}: adapters with init_lora_weights {init!r} change their model's own weights; merge "
            "them into it (PEFT's merge_and_unload) and give that"
        )
    check_base(found, folder, base)
    return found.eval()


def _put_in(language_model: Any, folder: Path) -> tuple[Any, list[str]]:
    """Put adapters into their model, and return also the names of weights in the file that are none of theirs."""
    with quiet_transformers(), quiet_peft(), loading("adapters", str(folder)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Found missing adapter keys")  # they are refused below
        adapted = peft.PeftModel.from_pretrained(language_model, str(folder), is_trainable=True)
    names = set(peft.get_peft_model_state_dict(adapted, save_embedding_layers=False))
    stored: dict[str, Any] = {}
    for file in folder.glob("*.safetensors"):
        stored |= read_weights(file)
    if missing := sorted(names - set(stored)):
        raise ValueError(
            f"{folder} does not fit the model's adapters at {len(missing)} places, the first is {missing[0]}"
        )
    return adapted, sorted(set(stored) - names)


def _lost(content: dict[str, Any], adapted: Any) -> str:
    """Name the first of PEFT's settings that our own description of adapters would lose; "" when there is none."""
    if (lost := foreign_setting(content)) or adapts_all(adapted, spec_of(content)):
        return lost
    return f"target_modules {content.get('target_modules')!r}"
