"""A CLIP vision tower under two sets of names: open_clip's, which runs here, and Hugging Face's `CLIPVisionModel`.

    conv1                       embeddings.patch_embedding
    class_embedding             embeddings.class_embedding
    positional_embedding        embeddings.position_embedding.weight
    ln_pre, ln_post             pre_layrnorm (its own spelling), post_layernorm
    transformer.resblocks.i     encoder.layers.i
      attn.in_proj_weight         self_attn.{q,k,v}_proj.weight, one below the other
      attn.out_proj               self_attn.out_proj
      mlp.c_fc, mlp.c_proj        mlp.fc1, mlp.fc2
      ln_1, ln_2                  layer_norm1, layer_norm2

open_clip's `proj`, the map into the space of texts, is no part of a vision model and takes no part in patch features.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transformer import QuickGELU, VisionTransformer
from torch import Tensor, nn

from vlmsel.models.damage import check_folder, read_object, read_weights

Q_K_V = ("q", "k", "v")
SINGLE = {
    "conv1.weight": "embeddings.patch_embedding.weight",
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_pre": "pre_layrnorm",
    "ln_post": "post_layernorm",
}
BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
OPEN_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")
ACTIVATIONS = {"quick_gelu": QuickGELU, "gelu": nn.GELU}


def to_huggingface(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give an open_clip tower's weights the names and shapes of `CLIPVisionModel`; `proj` is left out.

    Raises:
        ValueError: the tower has a weight that CLIP's has not; names it.
    """
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        block = OPEN_BLOCK.fullmatch(name)
        if block and (fused := re.fullmatch(r"attn\.in_proj_(weight|bias)", block[2])):
            attention = f"encoder.layers.{block[1]}.self_attn"
            out |= {f"{attention}.{k}_proj.{fused[1]}": t for k, t in zip(Q_K_V, tensor.chunk(3), strict=True)}
        elif name != "proj":
            out[_renamed(name, block)] = tensor
    return out


def _renamed(name: str, block: re.Match[str] | None) -> str:
    stem, _, kind = (block[2] if block else name).rpartition(".")
    names, whole = (BLOCK, block[2]) if block else (SINGLE, name)
    found = names.get(whole) or (f"{names[stem]}.{kind}" if stem in names and kind in ("weight", "bias") else None)
    if found is None:
        raise ValueError(f"the vision tower has {name}, which Hugging Face's CLIP has not; it cannot be converted")
    return f"encoder.layers.{block[1]}.{found}" if block else found


def to_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the weights of `CLIPVisionModel` open_clip's names; `proj`, which they lack, stays out.

    Raises:
        ValueError: a name is none of CLIP's.
    """
    backwards = {theirs: ours for names in (SINGLE, BLOCK) for ours, theirs in names.items()}
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith("position_ids"):  # older files hold this counter
            continue
        block = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)", name)
        if block and (third := re.fullmatch(r"self_attn\.([qkv])_proj\.(weight|bias)", block[2])):
            if third[1] == "q":
                parts = [state[name.replace("q_proj", f"{k}_proj")] for k in Q_K_V]
                out[f"transformer.resblocks.{block[1]}.attn.in_proj_{third[2]}"] = torch.cat(parts)
            continue
        whole = block[2] if block else name
        stem, _, kind = whole.rpartition(".")
        if whole not in backwards and stem not in backwards:
            raise ValueError(f"{name} is no weight of a CLIP vision tower")
        own = backwards.get(whole) or f"{backwards[stem]}.{kind}"
        out[f"transformer.resblocks.{block[1]}.{own}" if block else own] = tensor
    return out


def clip_config(visual: Any) -> dict[str, Any]:
    """Describe an open_clip tower as `CLIPVisionConfig` does.

    Raises:
        ValueError: it has a part that CLIP's towers have not.
    """
    blocks: Any = visual.transformer.resblocks
    activations = {name for name, kind in ACTIVATIONS.items() if isinstance(blocks[0].mlp[1], kind)}
    epsilons = {module.eps for module in visual.modules() if isinstance(module, nn.LayerNorm)}
    square = visual.image_size[0] == visual.image_size[1] and visual.patch_size[0] == visual.patch_size[1]
    if len(activations) != 1 or len(epsilons) != 1 or not square or isinstance(visual.ln_pre, nn.Identity):
        raise ValueError(
            "the vision tower is not built like CLIP's (activation, norms or a picture that is no square); it cannot "
            "become Hugging Face's"
        )
    width = visual.conv1.out_channels
    return {
        "model_type": "clip_vision_model",
        "hidden_size": width,
        "intermediate_size": blocks[0].mlp.c_fc.out_features,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": blocks[0].attn.num_heads,
        "image_size": visual.image_size[0],
        "patch_size": visual.patch_size[0],
        "projection_dim": visual.output_dim,
        "hidden_act": activations.pop(),
        "layer_norm_eps": epsilons.pop(),
    }


def build_tower(config: Mapping[str, Any]) -> VisionTransformer:
    """Build the open_clip tower that a `CLIPVisionConfig` describes, with random weights.

    Raises:
        ValueError: the configuration is none of CLIP's, or names an activation that open_clip has not.
    """
    full = _with_defaults(config)
    if full.hidden_act not in ACTIVATIONS:
        raise ValueError(f"a CLIP tower with the activation {full.hidden_act!r}; there are {', '.join(ACTIVATIONS)}")
    visual = VisionTransformer(
        image_size=full.image_size,
        patch_size=full.patch_size,
        width=full.hidden_size,
        layers=full.num_hidden_layers,
        heads=full.num_attention_heads,
        mlp_ratio=full.intermediate_size / full.hidden_size,
        output_dim=full.projection_dim,
        act_layer=ACTIVATIONS[full.hidden_act],
    )
    for module in visual.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = full.layer_norm_eps
    visual.proj = None  # patch features do not go through it
    return visual


def _with_defaults(config: Mapping[str, Any]) -> Any:
    from transformers import CLIPVisionConfig

    if config.get("model_type") not in ("clip_vision_model", "clip"):
        raise ValueError(f"the vision tower is of type {config.get('model_type')!r}; only CLIP's can be read")
    return CLIPVisionConfig(**{name: value for name, value in config.items() if name != "model_type"})


def load_tower(folder: Path) -> VisionTransformer:
    """Load the vision tower of a folder in Hugging Face's layout, a `CLIPVisionModel` or a whole `CLIPModel`.

    `preprocessor_config.json`, where there is one, says what pictures are normalised with.

    Raises:
        FileNotFoundError, ValueError: a file is missing, damaged or of another kind of model.
    """
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise FileNotFoundError(f"{folder}: no CLIP vision model (config.json and .safetensors weights) lies there")
    check_folder(folder)
    content = read_object(folder / "config.json")
    visual = build_tower(content.get("vision_config") or content)
    weights: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        weights |= read_weights(file)
    own = {k.removeprefix("vision_model."): v for k, v in weights.items() if not _of_texts(k)}
    try:
        visual.load_state_dict(to_open_clip(own))
    except (RuntimeError, KeyError) as problem:
        raise ValueError(f"{folder} does not fit its config.json: {' '.join(str(problem).split())}") from None
    if (folder / "preprocessor_config.json").is_file():
        pixels = read_object(folder / "preprocessor_config.json")
        visual.image_mean = tuple(pixels.get("image_mean") or open_clip.OPENAI_DATASET_MEAN)
        visual.image_std = tuple(pixels.get("image_std") or open_clip.OPENAI_DATASET_STD)
    return visual


def _of_texts(name: str) -> bool:
    return name.startswith(("text_model.", "text_projection", "visual_projection", "logit_scale"))
