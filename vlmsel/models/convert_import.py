"""A LLaVA checkpoint of others' as a model folder of ours, which brings its backbones along or names them.

    transformers   `LlavaForConditionalGeneration`, all its layouts                 everything is copied
    llava-1.5      a whole model; the tower is its own or named by `mm_vision_tower`  everything else is copied
    llava-1.5      LoRA: `adapter_model`, `non_lora_trainables.bin`                 the language model is named
    llava-1.5      stage one: `mm_projector.bin`                                    the language model is named
    prismatic      a `.pt` with `model.projector` and, after stage two, `model.llm_backbone`

Weights keep the precision that they have. A projector is never made up: without its weights there is no model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from torch import Tensor
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from vlmsel.models import checkpoint
from vlmsel.models.config import HUGGING_FACE, VLMConfig
from vlmsel.models.convert_chat import known_template
from vlmsel.models.convert_export import PIXELS, RECORD
from vlmsel.models.convert_files import Lazy, weights_in
from vlmsel.models.convert_names import check_complete, is_counter, part_of
from vlmsel.models.damage import read_object

VISION = "vision"  # where a converted model holds its tower


@dataclass(frozen=True)
class Given:
    """What a checkpoint does not say, and the user may.

    Attributes:
        language: the language model that a checkpoint without one belongs to: a folder or a hub name.
        vision: the tower of a checkpoint without one, as `VLMConfig` names it, or a folder of Hugging Face's CLIP.
        template: the conversation template.
        image_mode: how pictures are brought to a square.
    """

    language: str | None = None
    vision: str | None = None
    template: str | None = None
    image_mode: str | None = None


@dataclass
class Parts:
    """The three parts of a checkpoint, by their own names, and what goes beside them.

    An empty `language` or `vision` means that the part is named by `config`.
    """

    config: VLMConfig
    projector: dict[str, Tensor]
    vision: Lazy
    language: Lazy
    rows: int | None = None  # how many rows of embedding and head are kept; None for all
    added: tuple[str, ...] = ()  # tokens that the tokenizer loses again
    text_config: dict[str, Any] | None = None
    vision_config: dict[str, Any] | None = None
    pixels: dict[str, Any] | None = None
    adapter: dict[str, Tensor] | None = None
    adapter_config: dict[str, Any] | None = None
    home: str | None = None  # where tokenizer and generation settings lie


def sorted_parts(weights: Lazy, source: Path) -> dict[str, Lazy]:
    """Sort weights by the part they belong to, under their names there.

    Raises:
        ValueError: a name is none of LLaVA's; names the file.
    """
    parts: dict[str, Lazy] = {"vision": {}, "projector": {}, "language": {}}
    for name, read in weights.items():
        if not is_counter(name):
            try:
                part, own = part_of(name)
            except ValueError as problem:
                raise ValueError(f"{source}: {problem}") from None
            parts[part][own] = read
    return parts


def read_huggingface(folder: Path, given: Given) -> Parts:
    """Read a `LlavaForConditionalGeneration`.

    Raises:
        FileNotFoundError, ValueError: a file is missing or damaged, or the model has what ours has not.
    """
    read_object(folder / "config.json")
    parts = sorted_parts(weights_in(folder), folder)
    projector = {name: read() for name, read in parts["projector"].items()}
    check_complete(projector)
    config = AutoConfig.from_pretrained(folder)
    require_ours(folder, config)
    if (tower := config.vision_config.model_type) != "clip_vision_model":
        raise ValueError(f"{folder}: its vision tower is of type {tower!r}; only CLIP's can be converted")
    layer = config.vision_feature_layer
    record = read_object(folder / RECORD) if (folder / RECORD).is_file() else {}
    mode, pixels = pictures(folder)
    own = VLMConfig(
        vision=f"{HUGGING_FACE}./{VISION}",
        language=f"./{checkpoint.LANGUAGE}",
        quick_gelu=config.vision_config.hidden_act == "quick_gelu",
        vision_layer=layer if layer < 0 else layer - config.vision_config.num_hidden_layers - 1,
        template=given.template or record.get("template") or known_template(chat_of(folder)) or "vicuna_v1",
        image_mode=given.image_mode or record.get("image_mode") or mode,
        exif=record.get("exif", False),
        projector_trained=True,
    )
    text = config.text_config.to_dict() | {"tie_word_embeddings": config.tie_word_embeddings}
    if "lm_head.weight" not in parts["language"] and not config.tie_word_embeddings:
        raise ValueError(f"{folder}: its language model has no lm_head.weight; copy the whole folder again")
    language = at_home(parts["language"], text["model_type"])
    return Parts(
        own,
        projector,
        parts["vision"],
        language,
        rows=record.get("rows"),
        added=tuple(record.get("added", ())),
        text_config=text,
        vision_config=config.vision_config.to_dict(),
        pixels=pixels,
        home=str(folder),
    )


def require_ours(folder: Path, config: Any) -> None:
    """Refuse what LLaVA may have and our model has not.

    Raises:
        ValueError: names the setting.
    """
    settings = {
        "vision_feature_select_strategy": (config.vision_feature_select_strategy, "default"),
        "projector_hidden_act": (config.projector_hidden_act, "gelu"),
        "multimodal_projector_bias": (config.multimodal_projector_bias, True),
    }
    for name, (found, ours) in settings.items():
        if found != ours:
            raise ValueError(f"{folder}: {name} is {found!r}; only {ours!r} can be converted")
    if not isinstance(config.vision_feature_layer, int):
        raise ValueError(f"{folder}: vision_feature_layer is {config.vision_feature_layer}; a single one can be taken")
    if config.text_config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(f"{folder}: {config.text_config.model_type} is no causal language model that can stand alone")


def at_home(language: Lazy, kind: str) -> Lazy:
    """Give a language model's weights the names that its own class has for them."""
    prefix = getattr(transformers, causal_class(kind)).base_model_prefix
    return {re.sub(r"^model\.", f"{prefix}.", name): read for name, read in language.items()}


def causal_class(kind: str) -> str:
    """Name transformers' causal language model of a type."""
    found = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]
    return found if isinstance(found, str) else found[0]


def pictures(folder: Path) -> tuple[str, dict[str, Any] | None]:
    """Tell how a folder's processor brings pictures to a square, and what it normalises them with.

    Raises:
        ValueError: a file is damaged.
    """
    found = [read_object(folder / name) for name in ("processor_config.json", PIXELS) if (folder / name).is_file()]
    settings = next((own for one in found if (own := one.get("image_processor", one)).get("image_mean")), None)
    if settings is None:
        return "pad", None
    size = settings.get("size") or {}
    if settings.get("do_pad"):
        return "pad", settings
    return ("crop" if settings.get("do_center_crop", True) and "shortest_edge" in size else "squash"), settings


def chat_of(folder: Path) -> str | None:
    """Return a folder's chat template, wherever it lies."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    files = (folder / name for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"))
    found = (read_object(file).get("chat_template") for file in files if file.is_file())
    return next((text for text in found if isinstance(text, str)), None)
