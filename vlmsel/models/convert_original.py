"""LLaVA-1.5's own checkpoints and Prismatic's, as parts of a model of ours.

    whole model    config.json with mm_*, weights under model.mm_projector, model.layers, ...
    LoRA           adapter_model, non_lora_trainables.bin (the projector), config.json, adapter_config.json
    stage one      mm_projector.bin, beside it perhaps config.json
    Prismatic      a .pt with model.projector and, after stage two, model.llm_backbone; config.json above it

The tower is the checkpoint's own, where its weights lie there, or the one that it names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor
from transformers import AutoConfig

from vlmsel.models.adapter_settings import foreign_setting, spec_of
from vlmsel.models.clip_layout import clip_config
from vlmsel.models.config import HUGGING_FACE, VLMConfig, absolute, resolve, split_source
from vlmsel.models.convert_export import RECORD, TOWER, TOWERS
from vlmsel.models.convert_files import Lazy, constant, read_pickle, weights_in, weights_of
from vlmsel.models.convert_import import VISION, Given, Parts, pictures, sorted_parts
from vlmsel.models.convert_names import check_complete
from vlmsel.models.damage import read_object

PROJECTOR, OTHERS, ADAPTER = "mm_projector.bin", "non_lora_trainables.bin", "adapter_config.json"
LANGUAGE = "language_model"
# What Prismatic calls towers and ways to a square; templates go by the end of the language model's name.
PRISMATIC_TOWERS = {
    "clip-vit-l-336px": "openai/clip-vit-large-patch14-336",
    "clip-vit-l": "openai/clip-vit-large-patch14",
}
PRISMATIC_MODES = {"resize-naive": "squash", "resize-crop": "crop", "letterbox": "letterbox"}
PRISMATIC_TEMPLATES = {"-pure": "pure", "-chat": "llama2_chat"}


def read_whole(folder: Path, given: Given) -> Parts:
    """Read a whole model as LLaVA-1.5's code saves it.

    Raises:
        FileNotFoundError, ValueError: a file is missing or damaged, or the model has what ours has not.
    """
    content = read_object(folder / "config.json")
    sorted_ = sorted_parts(weights_in(folder), folder)
    projector = _projector(sorted_["projector"])
    kind = str(content.get("model_type", "")).removeprefix("llava_").replace("llava", "llama")
    text = {key: value for key, value in content.items() if not key.startswith(("mm_", "image_", "tune_", "use_mm"))}
    record = read_object(folder / RECORD) if (folder / RECORD).is_file() else {}
    config = _config(content, folder, given, f"./{LANGUAGE}", record)
    vision = sorted_["vision"]
    about = _tower_config(content, folder) if vision else None
    if vision:
        config = _with_vision(config, f"{HUGGING_FACE}./{VISION}", None)
    text_config = {**text, "model_type": kind}
    _, pixels = pictures(folder)
    language, rows = sorted_["language"], record.get("rows")
    return Parts(config, projector, vision, language, rows, (), text_config, about, pixels, home=str(folder))


def read_lora(folder: Path, given: Given) -> Parts:
    """Read adapters with the projector that was trained beside them; the language model is named.

    Raises:
        FileNotFoundError: the projector is missing: it would be random.
        ValueError: the adapters are of a kind that ours are not, or other weights were trained too.
    """
    if not (folder / OTHERS).is_file():
        raise FileNotFoundError(
            f"{folder}: no {OTHERS}, which holds the projector that was trained with these adapters; copy it there, a "
            "projector is never made up"
        )
    others = sorted_parts(weights_of(folder / OTHERS), folder / OTHERS)
    if trained := [*others["vision"], *others["language"]]:
        raise ValueError(f"{folder / OTHERS}: {trained[0]} was trained too and would be lost; merge the model first")
    settings = read_object(folder / ADAPTER)
    if problem := foreign_setting(settings):
        raise ValueError(f"{folder / ADAPTER}: adapters with {problem} cannot be kept; merge the model first")
    content = read_object(folder / "config.json")
    base = given.language or settings.get("base_model_name_or_path") or content.get("_name_or_path")
    config = _config(content, folder, given, _language(base, folder), {})
    config = VLMConfig(**{**vars(config), "lora": spec_of(settings)})
    adapter = {n: r() for n, r in weights_in(folder, ("adapter_model.safetensors", "adapter_model.bin")).items()}
    about = {**settings, "base_model_name_or_path": config.language}
    return Parts(config, _projector(others["projector"]), {}, {}, adapter=adapter, adapter_config=about)


def read_stage_one(source: Path, given: Given) -> Parts:
    """Read `mm_projector.bin`, the file or the folder that holds it; the language model and the tower are named.

    Raises:
        ValueError: nothing says which language model it belongs to, or the file holds other weights.
    """
    file = source / PROJECTOR if source.is_dir() else source
    found = sorted_parts(weights_of(file), file)
    if other := [*found["vision"], *found["language"]]:
        raise ValueError(f"{file} holds {other[0]} beside the projector; give a folder with the whole model")
    about = file.parent / "config.json"
    content = read_object(about) if about.is_file() else {}
    language = _language(given.language or content.get("_name_or_path"), file)
    return Parts(_config(content, file, given, language, {}), _projector(found["projector"]), {}, {})


def read_prismatic(source: Path, given: Given) -> Parts:
    """Read a checkpoint of Prismatic's, the `.pt` or the run folder that holds it under `checkpoints/`.

    Its language model is not described there: `given.language` says which one it was made from.

    Raises:
        FileNotFoundError, ValueError: a file is missing, damaged or of another kind.
    """
    file = source if source.is_file() else source / "checkpoints" / "latest-checkpoint.pt"
    tables = read_pickle(file).get("model")
    if not isinstance(tables, dict) or not isinstance(tables.get("projector"), dict):
        raise ValueError(f"{file} is no checkpoint of Prismatic's: it has no model.projector")
    run = next((folder for folder in (file.parent, file.parent.parent) if (folder / "config.json").is_file()), None)
    settings = read_object(run / "config.json").get("model", {}) if run else {}
    name = str(settings.get("llm_backbone_id", ""))
    template = next((ours for end, ours in PRISMATIC_TEMPLATES.items() if name.endswith(end)), "vicuna_v15")
    content = {
        "mm_vision_tower": PRISMATIC_TOWERS.get(str(settings.get("vision_backbone_id"))),
        "image_mode": PRISMATIC_MODES.get(str(settings.get("image_resize_strategy")), "letterbox"),
        "template": template,
    }
    parts = {key: {n: constant(t) for n, t in table.items()} for key, table in tables.items() if "vision" not in key}
    projector = _projector(sorted_parts(parts["projector"], file)["projector"])
    language = sorted_parts(parts.get("llm_backbone", {}), file)["language"]
    base = _language(given.language, file)
    config = _config(content, file, given, f"./{LANGUAGE}" if language else base, {})
    if not language:
        return Parts(config, projector, {}, {})
    text = AutoConfig.from_pretrained(resolve(base)).to_dict()
    text["vocab_size"] = len(language["model.embed_tokens.weight"]())
    return Parts(config, projector, {}, language, text_config=text, home=resolve(base))


def _projector(found: Lazy) -> dict[str, Tensor]:
    check_complete(found)
    return {name: read() for name, read in found.items()}


def _language(name: Any, source: Path) -> str:
    """Return the language model that a checkpoint names or the user gives.

    Raises:
        ValueError: neither does.
    """
    if not name:
        raise ValueError(f"{source}: nothing says which language model it belongs to; give --language FOLDER or NAME")
    return absolute(str(name))


def _config(content: dict[str, Any], source: Path, given: Given, language: str, record: dict[str, Any]) -> VLMConfig:
    """Say what LLaVA's settings mean for a model of ours.

    Raises:
        ValueError: the model has what ours has not, or nothing says which tower it sees with.
    """
    ours = {
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
    }
    for name, only in ours.items():
        if content.get(name, only) != only:
            raise ValueError(f"{source}: {name} is {content[name]!r}; only {only!r} can be converted")
    mode = "pad" if content.get("image_aspect_ratio") == "pad" else "crop"
    base = VLMConfig(
        vision=None,
        language=language,
        vision_layer=content.get("mm_vision_select_layer", -2),
        template=given.template or record.get("template") or content.get("template") or "vicuna_v1",
        image_mode=given.image_mode or record.get("image_mode") or content.get("image_mode") or mode,
        exif=record.get("exif", False),
        projector_trained=True,
    )
    return _with_vision(base, *_tower(given.vision or content.get("mm_vision_tower"), source))


def _with_vision(config: VLMConfig, vision: str, weights: str | None) -> VLMConfig:
    quick = True if weights == "openai" else None
    return VLMConfig(**{**vars(config), "vision": vision, "vision_weights": weights, "quick_gelu": quick})


def _tower(name: Any, source: Path) -> tuple[str, str | None]:
    """Return what our configuration calls a tower, and its weights.

    Raises:
        ValueError: it is none that is known, and no folder.
    """
    beside = (source if source.is_dir() else source.parent) / TOWER  # where our own exports leave it
    for folder in (split_source(str(name))[1] if name else "", str(beside)):
        if folder and Path(folder).is_dir():
            kind = "local-dir:" if (Path(folder) / "open_clip_config.json").is_file() else HUGGING_FACE
            return absolute(f"{kind}{folder}"), None
    if name in TOWERS:
        return TOWERS[name]
    if name and str(name).startswith("assets:"):
        return str(name), None
    raise ValueError(
        f"{source}: its vision tower is {name!r}; give --vision FOLDER with Hugging Face's CLIP or one of "
        f"{', '.join(TOWERS)}"
    )


def _tower_config(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Describe the tower whose weights a checkpoint holds, by the one that it names."""
    vision, weights = _tower(content.get("mm_vision_tower"), folder)
    if weights is None:
        about = read_object(Path(split_source(vision)[1]) / "config.json")
        return about.get("vision_config") or about
    with torch.device("meta"):
        return clip_config(open_clip.CLIP(**open_clip.get_model_config(vision)).visual)
