"""A model as its configuration describes it, on torch's device `meta`: every name and shape, and no number.

Nothing is downloaded and no weight is read: a preset, a folder that holds `config.json` alone, a folder of ours.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import open_clip
import torch
import transformers
from torch import nn

from vlmsel.models import checkpoint
from vlmsel.models.assembly import assemble, saved_folder
from vlmsel.models.clip_layout import build_tower
from vlmsel.models.config import HUGGING_FACE, VLMConfig, resolve, split_source
from vlmsel.models.damage import read_object
from vlmsel.models.huggingface import TOKENIZERS, has_any, kind_of, within_run
from vlmsel.models.huggingface_vlm import PROCESSORS, complete, open_processor
from vlmsel.models.image_text import ImageText
from vlmsel.models.language import load_tokenizer, quiet_transformers
from vlmsel.models.presets import LLAMA2_7B, PRESETS
from vlmsel.models.subject import Subject
from vlmsel.models.text import TEMPLATE, own_template
from vlmsel.models.vision import VisionTower

# config.json of meta-llama/Llama-2-7b-hf, whose hub asks for a licence first
LLAMA2_SHAPE: dict[str, Any] = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
}  # fmt: skip


def outline(source: str, dtype: torch.dtype = torch.float32) -> Subject:
    """Return a model without its weights; its tokenizer is None where no tokenizer lies with it.

    Raises:
        FileNotFoundError: there is no preset or folder of this name.
        ValueError: the folder holds a model of a kind that is neither scored nor tuned.
    """
    source = within_run(source)
    folder = saved_folder(source)
    if folder is not None:
        config, _ = checkpoint.read_config(folder)
        home = str(folder / checkpoint.LANGUAGE) if config.language_trained else config.language
        return _own(config, home, folder / checkpoint.TOKENIZER, dtype)
    if source in PRESETS:
        return _own(PRESETS[source], PRESETS[source].language, None, dtype)
    kind = kind_of(source)
    if kind == "image-text":
        return _image_text(source, dtype)
    if kind == "causal":
        template = own_template(source) if has_any(source, TOKENIZERS) else TEMPLATE
        return _own(VLMConfig(vision=None, language=source, template=template), source, None, dtype)
    if kind is None:
        raise FileNotFoundError(
            f"{source}: no preset ({', '.join(PRESETS)}) and no folder with a config.json; nothing is downloaded for a "
            "plan: put the model's config.json into a folder"
        )
    raise ValueError(f"{source}: a {kind}; give its base, and fresh adapters by --lora.r, or a model of ours")


def _own(config: VLMConfig, home: str, tokenizer: Path | None, dtype: torch.dtype) -> Subject:
    folder = str(tokenizer) if tokenizer is not None and tokenizer.is_dir() else resolve(home)
    reader = load_tokenizer(folder) if has_any(folder, TOKENIZERS) else None
    if home == LLAMA2_7B:
        shape: Any = transformers.LlamaConfig(**LLAMA2_SHAPE)
    else:
        shape = transformers.AutoConfig.from_pretrained(_with_config(resolve(home)))
    with torch.device("meta"), quiet_transformers():
        language = transformers.AutoModelForCausalLM.from_config(shape, dtype=dtype)
        vision = None if config.vision is None else VisionTower(_tower(config.vision).to(dtype), config.vision_layer)
        return assemble(config, vision, language, reader).to("meta")  # the projector is drawn on the CPU


def _with_config(folder: str) -> str:
    if not has_any(folder, ("config.json",)):
        raise FileNotFoundError(f"{folder}: no config.json; nothing is downloaded for a plan: put it into a folder")
    return folder


def _tower(source: str) -> nn.Module:
    """Build the vision tower of a source, as `VLMConfig.vision` names it."""
    prefix, path = split_source(source)
    if prefix == HUGGING_FACE:
        content = read_object(Path(path) / "config.json")
        return build_tower(content.get("vision_config") or content)
    folder = Path(resolve(path))
    file = folder / "open_clip_config.json"
    content = read_object(file)["model_cfg"] if file.is_file() else open_clip.get_model_config(path)
    if content is None:
        raise ValueError(f"open_clip has no architecture {path!r}, and there is no such folder")
    return open_clip.CLIP(**content).visual


def _image_text(source: str, dtype: torch.dtype) -> ImageText:
    config = transformers.AutoConfig.from_pretrained(source)
    with torch.device("meta"), quiet_transformers():
        model = transformers.AutoModelForImageTextToText.from_config(config, dtype=dtype)
    processor: Any = SimpleNamespace(tokenizer=SimpleNamespace(pad_token_id=0))
    reads = has_any(source, PROCESSORS) and has_any(source, TOKENIZERS)
    if reads:
        processor = open_processor(source)
        complete(processor, config, source)
    model.requires_grad_(False)
    subject = ImageText(model, processor, None, source)
    subject.tokenizer = processor.tokenizer if reads else None
    return subject
