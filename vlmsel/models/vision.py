"""The frozen vision tower: patch features of one block of an open_clip vision transformer.

The feature of a patch is the output of the penultimate block, without the final norm and without the class token, as in
LLaVA-1.5 and Prismatic; for ViT-L/14 at 336 px that is [576, 1024] per image.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from vlmsel.models.clip_layout import load_tower
from vlmsel.models.config import HUGGING_FACE, VLMConfig, resolve
from vlmsel.models.damage import check_folder, check_weights, loading


class VisionTower(nn.Module):
    """An open_clip visual tower that is always in eval mode and never trained.

    An image, `image_size` pixels square and normalised with `image_mean` and `image_std` of its channels, becomes
    `patches` features of length `width`.

    Raises:
        ValueError: the tower is not a vision transformer, or has no block `layer`.
    """

    def __init__(self, visual: nn.Module, layer: int = -2) -> None:
        super().__init__()
        blocks = getattr(getattr(visual, "transformer", None), "resblocks", None)
        if blocks is None or not hasattr(visual, "forward_intermediates"):
            raise ValueError(f"the vision tower must be an open_clip vision transformer, got {type(visual).__name__}")
        if not -len(blocks) <= layer < 0:
            raise ValueError(f"vision_layer counts from the end, -1 to -{len(blocks)} here; got {layer}")
        self.visual: Any = visual.requires_grad_(False).eval()
        shape: Any = visual
        self.layer, self.width, self.patches = layer, shape.conv1.out_channels, math.prod(shape.grid_size)
        self.image_size: int = shape.image_size[0]
        self.image_mean = tuple(getattr(visual, "image_mean", None) or open_clip.OPENAI_DATASET_MEAN)
        self.image_std = tuple(getattr(visual, "image_std", None) or open_clip.OPENAI_DATASET_STD)

    def train(self, mode: bool = True) -> VisionTower:
        """Stay in eval mode whatever `mode` says."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return next(self.parameters()).device

    @torch.no_grad()
    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map images [m, 3, S, S], as bytes or normalised, to patch features [m, patches, width].

        Raises:
            ValueError: the images do not have the tower's size.
        """
        expected = (3, *self.visual.image_size)
        if pixel_values.dim() != 4 or tuple(pixel_values.shape[1:]) != expected:
            raise ValueError(f"the vision tower takes images [m, {expected}], got {list(pixel_values.shape)}")
        if pixel_values.dtype == torch.uint8:
            pixel_values = normalise(pixel_values, self.image_mean, self.image_std)
        out = self.visual.forward_intermediates(
            pixel_values.to(self.visual.conv1.weight.dtype),
            indices=[self.layer],
            output_fmt="NLC",
            intermediates_only=True,
            stop_early=True,
        )
        return out["image_intermediates"][0]


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Bring bytes [..., 3, S, S] to the range that a tower was trained with, (pixel / 255 - mean) / std, in float32."""
    channels = torch.tensor([mean, std], dtype=torch.float32).to(pixels.device)[:, :, None, None]
    return (pixels.float() / 255 - channels[0]) / channels[1]


def uses_quick_gelu(visual: nn.Module) -> bool:
    """Tell whether the tower's activation is x·sigmoid(1.702x), as in OpenAI's weights, and not the exact GELU."""
    return any(isinstance(module, QuickGELU) for module in visual.modules())


def check_activation(found: bool, config: VLMConfig) -> None:
    """Refuse a tower whose activation is not the one its weights were trained with; a wrong one is silent otherwise.

    `found` tells whether the tower has QuickGELU.

    Raises:
        ValueError: the activation contradicts `config.quick_gelu` or the pretrained tag.
    """
    wanted, origin = config.quick_gelu, "the model's configuration asks for"
    tag = config.vision_weights and open_clip.get_pretrained_cfg(config.vision or "", config.vision_weights)
    if tag:
        wanted, origin = bool(tag.get("quick_gelu", False)), f"the weights {config.vision_weights!r} need"
    if wanted is not None and wanted != found:
        names = {True: "QuickGELU", False: "the exact GELU"}
        raise ValueError(
            f"vision tower {config.vision}: {origin} {names[wanted]}, the tower has {names[found]}; "
            f"open_clip architectures whose names end in -quickgelu have QuickGELU"
        )


def load_vision(config: VLMConfig, dtype: torch.dtype = torch.float32) -> VisionTower:
    """Load the tower that `config` names, with its pretrained weights, on the CPU.

    Raises:
        FileNotFoundError: a folder or weight file is missing.
        ValueError: no such architecture, no weights, a damaged file, or the wrong activation.
    """
    assert config.vision is not None
    if config.vision.startswith(HUGGING_FACE):
        with torch.random.fork_rng(devices=[]):
            tower = load_tower(Path(config.vision.removeprefix(HUGGING_FACE)))
        check_activation(uses_quick_gelu(tower), config)
        return VisionTower(tower.to(dtype), config.vision_layer)
    source = resolve(config.vision)
    if config.vision.startswith("assets:"):
        source = f"local-dir:{source}"
    weights = None if source.startswith("local-dir:") else config.vision_weights
    check_source(source, weights, config.quick_gelu)
    if not source.startswith("local-dir:"):
        check_activation(bool(open_clip.get_model_config(source).get("quick_gelu")), config)  # before any download
    # open_clip draws weights before it loads them
    with torch.random.fork_rng(devices=[]), loading("vision tower", config.vision):
        visual = open_clip.create_model(source, pretrained=weights, require_pretrained=True).visual
    check_activation(uses_quick_gelu(visual), config)
    return VisionTower(visual.to(dtype), config.vision_layer)


def check_source(source: str, weights: str | None, quick_gelu: bool | None) -> None:
    """Refuse a vision source that cannot be loaded, in words that name the mend.

    A weight file does not say which activation it was trained with, and the wrong one loads without a word.
    """
    if source.startswith("local-dir:"):
        folder = Path(source.removeprefix("local-dir:"))
        if not (folder / "open_clip_config.json").is_file():
            raise FileNotFoundError(f"{folder}: no open_clip_config.json; a vision folder holds it beside its weights")
        if not any(folder.glob("*.safetensors")):
            raise FileNotFoundError(f"{folder}: no .safetensors weights beside open_clip_config.json")
        check_folder(folder)
    elif open_clip.get_model_config(source) is None:
        raise ValueError(f"open_clip has no architecture {source!r}; give its name, or local-dir:<folder>")
    elif weights is None:
        raise ValueError(f"vision tower {source} has no weights; set vision_weights to a pretrained tag or a file")
    elif not (os.path.isfile(weights) or open_clip.get_pretrained_cfg(source, weights)):
        raise FileNotFoundError(f"{weights}: neither a weight file nor a pretrained tag of {source}")
    elif os.path.isfile(weights):
        if quick_gelu is None:
            raise ValueError(
                f"{weights}: a weight file does not tell its activation; set quick_gelu to true for OpenAI's weights "
                "and others trained with QuickGELU, else to false"
            )
        if weights.endswith(".safetensors"):
            check_weights(Path(weights))
