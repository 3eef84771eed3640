"""Write the parts of a LLaVA checkpoint as a model folder of ours, and look whether they are whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, GenerationConfig

from vlmsel.models import checkpoint
from vlmsel.models.clip_layout import load_tower
from vlmsel.models.convert_files import write_shards
from vlmsel.models.convert_import import PIXELS, VISION, Parts, causal_class
from vlmsel.models.damage import read_object
from vlmsel.models.language import load_tokenizer, quiet_transformers
from vlmsel.runs import atomic_folder, environment, write_json

OWN_KEYS = ("image_token", "processor_class", "chat_template", "extra_special_tokens")


def write_own(parts: Parts, folder: str | Path) -> None:
    """Write a model folder of ours that `open_subject` opens, wherever it lies later.

    Raises:
        FileExistsError: `folder` holds something.
        ValueError: weights are missing, or too many.
        OSError: the disk is full.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} holds files already; give --out a folder of its own")
    with atomic_folder(folder) as part:
        save_file(checkpoint.contiguous(parts.projector), part / checkpoint.PROJECTOR, metadata={"format": "pt"})
        if parts.vision:
            write_vision(parts, part / VISION)
        if parts.language:
            write_language(parts, part / checkpoint.LANGUAGE)
        if parts.adapter is not None:
            (part / checkpoint.ADAPTER).mkdir()
            save_file(parts.adapter, part / checkpoint.ADAPTER / "adapter_model.safetensors", metadata={"format": "pt"})
            write_json(part / checkpoint.ADAPTER / "adapter_config.json", parts.adapter_config)
        content = {"format": checkpoint.FORMAT, "model": asdict(parts.config), "fingerprints": {}}
        write_json(part / checkpoint.CONFIG, {**content, "environment": environment()})


def write_vision(parts: Parts, folder: Path) -> None:
    """Write the tower as Hugging Face's `CLIPVisionModel` and load it once, which shows that it is whole.

    Raises:
        ValueError: weights do not fit the configuration.
    """
    assert parts.vision_config is not None
    write_shards(((f"vision_model.{name}", read()) for name, read in parts.vision.items()), folder)
    write_json(folder / "config.json", parts.vision_config)
    if parts.pixels:
        write_json(folder / PIXELS, parts.pixels)
    with torch.random.fork_rng(devices=[]):
        load_tower(folder)


def write_language(parts: Parts, folder: Path) -> None:
    """Write the language model with its tokenizer, as a causal language model of its own.

    Raises:
        ValueError: weights are missing, or too many.
    """
    assert parts.text_config is not None and parts.home is not None
    about = {**parts.text_config, "architectures": [causal_class(parts.text_config["model_type"])]}
    if parts.rows is not None:
        about["vocab_size"] = parts.rows
        about = {k: None if k.endswith("_token_id") and _beyond(v, parts.rows) else v for k, v in about.items()}
    write_shards(_kept(parts, folder), folder)
    write_json(folder / "config.json", about)
    check_whole(parts, folder)
    write_tokenizer(parts, folder)
    if (Path(parts.home) / "generation_config.json").is_file():
        with quiet_transformers():
            settings = GenerationConfig.from_pretrained(parts.home)
            if parts.rows is not None and _beyond(settings.pad_token_id, parts.rows):
                settings.pad_token_id = None
            settings.save_pretrained(folder)


def _beyond(token: Any, rows: int) -> bool:
    return isinstance(token, int) and token >= rows


def check_whole(parts: Parts, folder: Path) -> None:
    """Compare the names of the language model's weights with those of the model that its configuration describes.

    Raises:
        ValueError: one is missing, or too many.
    """
    with quiet_transformers(), torch.device("meta"):
        config = AutoConfig.from_pretrained(folder)
        model = getattr(transformers, causal_class(config.model_type))(config)
    tied = set(model.all_tied_weights_keys) if config.tie_word_embeddings else set()
    wanted, there = set(model.state_dict()) - tied, set(parts.language) - tied
    if differ := sorted(wanted ^ there):
        what = "is missing" if differ[0] in wanted else "is none of the model's"
        raise ValueError(
            f"{parts.home}: {len(differ)} weights of the language model do not fit config.json; {differ[0]} {what}"
        )


def _kept(parts: Parts, folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Give the language model's weights without the rows that were added; a tied head is the embedding again."""
    assert parts.text_config is not None
    for name, read in parts.language.items():
        if name == "lm_head.weight" and parts.text_config.get("tie_word_embeddings"):
            continue
        table = name.endswith(("lm_head.weight", "embed_tokens.weight", "wte.weight"))
        tensor = read()
        yield name, tensor[: parts.rows] if table and parts.rows is not None else tensor


def write_tokenizer(parts: Parts, folder: Path) -> None:
    """Write the tokenizer, without the tokens that an export of ours had added."""
    load_tokenizer(str(parts.home)).save_pretrained(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    if parts.added:
        words = read_object(folder / "tokenizer.json")
        words["added_tokens"] = [token for token in words["added_tokens"] if token["content"] not in parts.added]
        write_json(folder / "tokenizer.json", words)
        settings = read_object(folder / "tokenizer_config.json")
        own = {k: v for k, v in settings.items() if k not in OWN_KEYS and v not in parts.added}
        write_json(folder / "tokenizer_config.json", own)
