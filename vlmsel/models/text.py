"""A Hugging Face causal language model, or PEFT's adapters of one, as a `VLM` that reads text only.

Adapters are put in by PEFT itself, whatever their kind. Those that `LoraSpec` can describe become our own; with
everything else that PEFT knows (other methods, ranks by layer, trained biases, whole modules, initialisations that
change the model's own weights) a model can be evaluated only, because that would be lost when the model is trained and
saved. What a setting means must be known here for adapters to be taken as our own.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import torch
from torch import nn

from vlmsel.models.adapter_settings import foreign_setting, spec_of
from vlmsel.models.assembly import build
from vlmsel.models.config import VLMConfig, resolve
from vlmsel.models.damage import check_folder, loading, read_object, read_weights
from vlmsel.models.huggingface import TOKENIZERS, has_any, kind_of, require_text_model, require_weights
from vlmsel.models.image_text import PROCESSORS, ImageText, open_image_text
from vlmsel.models.language import load_tokenizer, quiet_transformers
from vlmsel.models.lora import adapts_all, merge_lora, quiet_peft
from vlmsel.models.subject import OnlyEvaluated
from vlmsel.models.vlm import VLM

TEMPLATE = "text"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


class AskedText(OnlyEvaluated, VLM):
    """A language model with adapters that can be evaluated only."""


def could_be_on_hub(source: str) -> bool:
    """Tell whether a source has the form `owner/name` and is no path that exists.

    >>> could_be_on_hub("meta-llama/Llama-2-7b-hf"), could_be_on_hub("/runs/tune"), could_be_on_hub("runs/a/model")
    (True, False, False)
    """
    return HUB_NAME.fullmatch(source) is not None and not Path(source).exists()


def open_causal(source: str, dtype: torch.dtype = torch.float32, template: str | None = None) -> VLM:
    """Build a text model of a folder with a Hugging Face causal language model.

    Raises:
        FileNotFoundError: weights or tokenizer are missing.
        ValueError: a file is damaged, or the model is of a kind that is not supported.
    """
    require_text_model(source)
    return build(VLMConfig(vision=None, language=source, template=template or TEMPLATE), dtype)


def open_from_hub(source: str, dtype: torch.dtype = torch.float32, template: str | None = None) -> VLM:
    """Build a text model of the hub's.

    Raises:
        FileNotFoundError: it cannot be loaded; the line also says what else the name could be.
    """
    print(f"{source}: no folder of this name; looking for it on the hub", flush=True)
    try:
        return build(VLMConfig(vision=None, language=source, template=template or TEMPLATE), dtype)
    except (OSError, ValueError, ImportError) as problem:
        reason = " ".join(str(problem).split())[:200].rstrip(".")
        raise FileNotFoundError(
            f"{source}: no such folder, and no causal language model of this name can be loaded from the hub "
            f"({reason}); mend the path or the name, or fetch the model into a folder first"
        ) from problem


def open_adapter(source: str, dtype: torch.dtype = torch.float32, template: str | None = None) -> VLM | ImageText:
    """Build the model that adapters in a folder were made for, with these adapters.

    Those of an image-text model are merged into it, as it is only asked.

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
    if Path(resolve(base)).is_dir() and kind_of(resolve(base)) == "image-text":
        asked = open_image_text(resolve(base), dtype, template, source if has_any(source, PROCESSORS) else None)
        return ImageText(merge_lora(_put_in(asked.model, folder)[0]).eval(), asked.processor, template, source)
    config = VLMConfig(vision=None, language=base, template=template or TEMPLATE)
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
