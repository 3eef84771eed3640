"""Our model as a checkpoint that others open: transformers' `LlavaForConditionalGeneration`, or LLaVA-1.5's own.

Adapters are merged in float32 first. What the formats want and we have not is added: the token `<image>`, which stands
for a patch there, a padding token where the tokenizer has none, and rows of the embedding and the head for both, up to
a multiple of 64, each the mean of the rows there are. `vlmsel_export.json` remembers how many rows were ours and how
pictures and conversations are read, so that the way back gives the same model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    GenerationConfig,
    LlavaConfig,
    LlavaImageProcessorPil,
    LlavaProcessor,
)

from vlmsel.data.encoding import begins_with_bos
from vlmsel.data.templates import IMAGE, find_template
from vlmsel.models import checkpoint
from vlmsel.models.clip_layout import clip_config, to_huggingface
from vlmsel.models.convert_chat import chat_template
from vlmsel.models.convert_files import write_shards
from vlmsel.models.convert_names import Layout, check_complete, written
from vlmsel.models.language import quiet_transformers, unwrap
from vlmsel.models.vision import VisionTower
from vlmsel.models.vlm import VLM
from vlmsel.runs import atomic_folder, write_json

RECORD = "vlmsel_export.json"
ROWS = 64  # the embedding's rows become a multiple of this where they grow
PAD = "<pad>"
TOWER, PIXELS = "vision_tower", "preprocessor_config.json"
# Names of towers that LLaVA's checkpoints give, and what open_clip calls them and their weights.
TOWERS = {
    "openai/clip-vit-large-patch14-336": ("ViT-L-14-336-quickgelu", "openai"),
    "openai/clip-vit-large-patch14": ("ViT-L-14-quickgelu", "openai"),
}


@dataclass(frozen=True)
class Words:
    """A tokenizer with `<image>` and a padding token, and how many rows the embedding needs for it."""

    tokenizer: Any
    rows: int

    @property
    def image(self) -> int:
        return int(self.tokenizer.convert_tokens_to_ids(IMAGE))


def export(model: VLM, folder: str | Path, layout: Layout, dtype: torch.dtype = torch.float32) -> None:
    """Write a model, whose adapters become part of it, into a folder of its own; each weight is rounded once.

    Raises:
        FileExistsError: `folder` holds something.
        ValueError: the model reads text only, its projector was never trained, or a part has no place in the format.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} holds files already; give --out a folder of its own")
    if model.vision is None:
        raise ValueError("this model reads text only; save_pretrained of its language model is what others open")
    model.require_ready()
    if model.vlm_config.lora is not None:
        model.merge_lora()
    with atomic_folder(folder) as part:
        if layout == "llava-1.5":
            write_original(model, part, folder, dtype)
        else:
            write_huggingface(model, part, layout, dtype)
        write_json(part / RECORD, record(model, layout))


def write_huggingface(model: VLM, part: Path, layout: Layout, dtype: torch.dtype) -> None:
    """Write what `AutoModelForImageTextToText` and `AutoProcessor` open."""
    words = add_words(model)
    write_shards(((name, tensor.to(dtype)) for name, tensor in exported(model, words, layout)), part)
    with quiet_transformers():
        llava_config(model, words, dtype).save_pretrained(part)
        processor(model, words).save_pretrained(part)
        generation(model, words).save_pretrained(part)


def write_original(model: VLM, part: Path, folder: Path, dtype: torch.dtype) -> None:
    """Write what LLaVA-1.5's code opens, which takes the tower from where `mm_vision_tower` says.

    Raises:
        ValueError: the language model is no Llama.
    """
    language, config = unwrap(model.language_model), model.vlm_config
    if language.config.model_type != "llama":
        raise ValueError(f"LLaVA-1.5's code runs Llama, the model has {language.config.model_type}; take --to llava-hf")
    words = Words(model.tokenizer, language.get_input_embeddings().weight.shape[0])
    weights = ((n, t.to(dtype)) for n, t in exported(model, words, "llava-1.5") if ".vision_tower." not in n)
    write_shards(weights, part)
    tower = next((theirs for theirs, ours in TOWERS.items() if ours == (config.vision, config.vision_weights)), None)
    if tower is None:
        write_tower(model.tower, part / TOWER)
        tower = str(folder.resolve() / TOWER)
    about = language.config.to_dict() | {
        "model_type": "llava_llama",
        "architectures": ["LlavaLlamaForCausalLM"],
        "mm_vision_tower": tower,
        "mm_hidden_size": model.tower.width,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": model.tower.layer,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": "pad" if config.image_mode == "pad" else "square",
        "use_mm_proj": True,
    }
    write_json(part / "config.json", about)
    words.tokenizer.save_pretrained(part)


def write_tower(tower: VisionTower, folder: Path) -> None:
    """Write a vision tower as Hugging Face's `CLIPVisionModel`, with what its pictures are normalised with."""
    weights = to_huggingface(tower.visual.state_dict())
    write_shards(((f"vision_model.{name}", tensor) for name, tensor in weights.items()), folder)
    about = {**clip_config(tower.visual), "architectures": ["CLIPVisionModel"]}
    write_json(folder / "config.json", about)
    size, channels = tower.image_size, {"image_mean": list(tower.image_mean), "image_std": list(tower.image_std)}
    pixels = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": size}, **channels}
    write_json(folder / PIXELS, {**pixels, "crop_size": {"height": size, "width": size}})


def add_words(model: VLM) -> Words:
    """Give a copy of the model's tokenizer the tokens that it lacks.

    Raises:
        ValueError: the model has no tokenizer.
    """
    if model.tokenizer is None:
        raise ValueError("the model has no tokenizer, which the format needs; load it from a folder")
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.add_tokens([IMAGE], special_tokens=True)
    tokenizer.image_token = IMAGE
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": PAD})
    rows = unwrap(model.language_model).get_input_embeddings().weight.shape[0]
    highest = max(tokenizer.get_vocab().values()) + 1
    return Words(tokenizer, rows if highest <= rows else -(-highest // ROWS) * ROWS)


def exported(model: VLM, words: Words, layout: Layout) -> Iterator[tuple[str, Tensor]]:
    """Give every weight under the name that a layout has for it.

    Raises:
        ValueError: a part of the model has no place there.
    """
    check_complete(model.projector.state_dict())
    for name, tensor in to_huggingface(model.tower.visual.state_dict()).items():
        yield written("vision", name, layout), tensor
    for name, tensor in model.projector.state_dict().items():
        yield written("projector", name, layout), tensor
    language = unwrap(model.language_model)
    tables = _tables(language)
    for name, tensor in checkpoint.own_weights(model.language_model).items():
        plain = name.replace(f"{language.base_model_prefix}.", "model.", 1)
        yield written("language", plain, layout), grown(tensor, words.rows) if name in tables else tensor


def _tables(language: Any) -> set[str]:
    """Name the two weights that have a row for every token."""
    names = {module: name for name, module in language.named_modules()}
    return {f"{names[part]}.weight" for part in (language.get_input_embeddings(), language.get_output_embeddings())}


def grown(table: Tensor, rows: int) -> Tensor:
    """Add rows to a table [tokens, d], each the mean of those there are, so that no new token has a high logit.

    >>> grown(torch.tensor([[1.0], [3.0]]), 3)[2]
    tensor([2.])
    """
    mean = table.double().mean(0, keepdim=True).to(table.dtype)
    return torch.cat([table, mean.expand(rows - len(table), -1)])


def llava_config(model: VLM, words: Words, dtype: torch.dtype = torch.float32) -> LlavaConfig:
    """Describe the model as transformers does.

    Raises:
        ValueError: the tower is not built like CLIP's.
    """
    language = copy.deepcopy(unwrap(model.language_model).config)
    language.update({"vocab_size": words.rows, "pad_token_id": words.tokenizer.pad_token_id, "dtype": dtype})
    vision = clip_config(model.tower.visual)
    vision.pop("model_type")
    settings: dict[str, Any] = {
        "image_token_index": words.image,
        "image_seq_length": model.tower.patches,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": model.tower.layer,
        "vision_feature_select_strategy": "default",
        "multimodal_projector_bias": True,
        "tie_word_embeddings": bool(language.tie_word_embeddings),
        "architectures": ["LlavaForConditionalGeneration"],
        "pad_token_id": words.tokenizer.pad_token_id,
        "dtype": dtype,
    }
    return LlavaConfig(vision_config=CLIPVisionConfig(**vision), text_config=language, **settings)


def generation(model: VLM, words: Words) -> GenerationConfig:
    """Say how the language model generates, with the tokenizer's padding."""
    settings = copy.deepcopy(unwrap(model.language_model).generation_config) or GenerationConfig()
    settings.pad_token_id = words.tokenizer.pad_token_id
    settings.eos_token_id = settings.eos_token_id or words.tokenizer.eos_token_id
    return settings


def processor(model: VLM, words: Words) -> LlavaProcessor:
    """Make the processor that brings pictures to the tower's square, makes room for patches and asks in our template.

    A picture that is to be padded on both sides alike (`letterbox`) is padded as LLaVA does, by at most one pixel
    otherwise.
    """
    tower, mode, template = model.tower, model.vlm_config.image_mode, find_template(model.vlm_config.template)
    size, square = tower.image_size, {"height": tower.image_size, "width": tower.image_size}
    about: dict[str, Any] = {"image_mean": list(tower.image_mean), "image_std": list(tower.image_std)}
    about |= {"crop_size": square, "size": square if mode == "squash" else {"shortest_edge": size}}
    kind = LlavaImageProcessorPil if mode in ("pad", "letterbox") else CLIPImageProcessorPil
    about |= {"do_pad": True} if kind is LlavaImageProcessorPil else {}
    begins = words.tokenizer.bos_token_id is not None and (template.forces_bos or begins_with_bos(words.tokenizer))
    return LlavaProcessor(
        kind(do_center_crop=mode != "squash", **about),
        words.tokenizer,
        patch_size=tower.visual.patch_size[0],
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the class token, which "default" takes away
        chat_template=chat_template(template, begins),
    )


def record(model: VLM, layout: Layout) -> dict[str, Any]:
    """Say what the formats do not: how many of the rows are ours, and how samples are read."""
    config = model.vlm_config
    rows = unwrap(model.language_model).get_input_embeddings().weight.shape[0]
    about = {"template": config.template, "image_mode": config.image_mode, "exif": config.exif}
    words = () if layout == "llava-1.5" else (IMAGE, PAD)
    added = [word for word in words if word not in model.tokenizer.get_vocab()]
    return {"rows": rows, "added": added, **about}
