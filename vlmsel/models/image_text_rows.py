"""Whose the rows are that a Hugging Face image-text model's vision part reads, for each way of packing images.

    Qwen's       all patches of a batch in one row; its mergers see merge² of them as one
    Idefics'     pictures and tiles [n, pictures, 3, h, w], of which black ones fill up and are left out by the model
    LLaVA's ...  pictures or tiles [rows, 3, h, w]; OneVision's [pictures, tiles, 3, h, w], filled up as Idefics'
    Mllama's     [n, pictures, tiles, 3, h, w]; layers of the language model look at [n · pictures · tiles, patches, d]

The rows of everything that stands between the pictures and the text follow from this; what no map is right for is
refused by the check of the first batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vlmsel.data.image_text_batches import ImageTextBatch

CROSS = ("k_proj", "v_proj")  # the maps of a cross-attention that read pictures


class RowMaps:
    """The modules of a model whose rows are not samples.

    Args:
        module: the whole, whose names are used.
        base: the part of it that maps tokens and pictures to hidden states.
        decoder: the part of that which reads text.
    """

    def __init__(self, module: nn.Module, base: nn.Module, decoder: nn.Module) -> None:
        names = {id(part): name for name, part in module.named_modules()}
        below = {id(part) for part in decoder.modules()}
        sides = [part for part in base.children() if id(part) not in below and part is not decoder]
        self.sides = [names[id(part)] for part in sides]
        self.cross = [
            name
            for name, _ in module.named_modules()
            if name.endswith(CROSS) and name.rpartition(".")[0].endswith("cross_attn")
        ]
        vision = getattr(getattr(base, "config", None), "vision_config", None)
        self.merge = getattr(vision, "spatial_merge_size", 1) ** 2
        self.merged = [names[id(part)] for side in sides for part in _reads_merged(side, self.merge)]

    def of(self, batch: ImageTextBatch) -> Mapping[str, Tensor]:
        """Return by module name the sample of each row."""
        if self.cross:
            return self._beside(batch)
        rows = picture_rows(batch)
        owners = dict.fromkeys(self.sides, rows)
        if "image_grid_thw" in batch.packed:
            owners |= dict.fromkeys(self.merged, rows[:: self.merge])
        return owners

    def _beside(self, batch: ImageTextBatch) -> Mapping[str, Tensor]:
        pixels = batch.sample.get("pixel_values")
        if pixels is None:
            return {}
        count = pixels.shape[1] * pixels.shape[2]
        return dict.fromkeys(self.cross, torch.arange(len(pixels), device=pixels.device).repeat_interleave(count))


def picture_rows(batch: ImageTextBatch) -> Tensor:
    """Return the sample of each patch, picture or tile that a vision part reads, without those that fill up."""
    if (pixels := batch.packed.get("pixel_values")) is not None:
        owners = batch.owners["pixel_values"]
        return owners if pixels.ndim < 5 else owners[:, None].expand(pixels.shape[:2])[_real(pixels)]
    if (pixels := batch.sample.get("pixel_values")) is not None:
        return torch.arange(len(pixels), device=pixels.device)[:, None].expand(pixels.shape[:2])[_real(pixels)]
    return torch.zeros(0, dtype=torch.long, device=batch.uids.device)


def _real(pixels: Tensor) -> Tensor:
    """Mark pictures that are not black throughout. [n, k, 3, h, w] -> [n, k]"""
    return (pixels != 0).flatten(2).any(2)


def _reads_merged(side: nn.Module, merge: int) -> list[nn.Module]:
    """Return the layers of mergers that read several patches as one, by the width that they read."""
    found: list[nn.Module] = []
    for name, merger in side.named_modules():
        if merge > 1 and name.split(".")[0] in ("merger", "deepstack_merger_list"):
            width = getattr(merger, "in_features", None) or _length(merger)
            narrow = min((_length(part) for part in side.modules() if _length(part)), default=0)
            if width and width > narrow:
                found.append(merger)
    return found


def _length(module: Any) -> int:
    """Return the width of a norm, 0 of other layers."""
    weight = getattr(module, "weight", None)
    return len(weight) if isinstance(weight, Tensor) and weight.ndim == 1 else 0
