"""What the work and the room of a model depend on, counted on its names and shapes; weights are not looked at."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from vlmsel.gradients.blocks import FROZEN_COPY, in_projector
from vlmsel.models.language import decoder_and_head
from vlmsel.models.subject import Subject

LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")
BLOCK = re.compile(r"\.resblocks\.(\d+)\.")
PICTURE = (640, 480)  # width and height that are assumed where a model takes pictures of any size


@dataclass(frozen=True)
class Counts:
    """Parts are called tower, projector, language, adapters, head and embeddings.

    Attributes:
        entries: parameters of every part.
        products: entries of the matrices that every token, or every patch, is multiplied with.
        learning: of the products, those whose gradients are formed: blocks that are looked at, or what learns.
        formed: all entries whose gradients are formed, biases and norms too.
        layers, width, inner, attention, vocabulary: the language model's, attention = heads times their dimension.
        reached: how many of the layers gradients go back through.
        read: widths of what a layer's adapted maps read, each distinct input once, averaged over layers.
        tower_layers, tower_width: the vision tower's, 0 without one.
        patches: what the tower makes of an image, and places: what the language model reads of it.
    """

    entries: Mapping[str, int]
    products: Mapping[str, int]
    learning: Mapping[str, int]
    formed: int
    layers: int
    width: int
    inner: int
    attention: int
    vocabulary: int
    reached: int
    read: float
    tower_layers: int = 0
    tower_width: int = 0
    patches: int = 0
    places: int = 0

    @property
    def sees(self) -> bool:
        return self.patches > 0


def count(subject: Subject, chosen: Collection[str]) -> Counts:
    """Count a model, of whose parameters the `chosen` are looked at or learn."""
    parts = _parts(subject)
    entries, products, learning = (dict.fromkeys(PARTS, 0) for _ in range(3))
    formed = 0
    modules = dict(subject.module.named_modules())
    for name, parameter in subject.module.named_parameters():
        if FROZEN_COPY in name.split("."):
            continue
        part, size = parts(name, parameter), parameter.numel()
        entries[part] += size
        formed += size if name in chosen else 0
        if parameter.ndim > 1 and part != "embeddings" and _multiplies(name, modules, subject):
            products[part] += size
            learning[part] += size if name in chosen else 0
    text = subject.backbone.config.get_text_config()
    heads = text.num_attention_heads
    products["head"] = text.vocab_size * text.hidden_size  # also where it is tied to the embeddings
    shape = {
        "layers": text.num_hidden_layers,
        "width": text.hidden_size,
        "inner": getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        "attention": heads * (getattr(text, "head_dim", None) or text.hidden_size // heads),
        "vocabulary": text.vocab_size,
    }
    back = _reached(chosen, shape["layers"])
    return Counts(entries, products, learning, formed, **shape, reached=back, **_seeing(subject),
                  read=_read(modules) / shape["layers"])  # fmt: skip


PARTS = ("tower", "projector", "language", "adapters", "head", "embeddings")


def _parts(subject: Subject) -> Any:
    """Return what says of a parameter, by its name and itself, which part it belongs to."""
    model = getattr(subject, "language_model", subject.backbone)
    decoder, head = decoder_and_head(model)
    inside = {id(parameter) for parameter in decoder.parameters()}
    embeddings = {id(parameter) for parameter in subject.backbone.get_input_embeddings().parameters()}
    at_end = {id(parameter) for parameter in head.parameters()}

    def part(name: str, parameter: nn.Parameter) -> str:
        if ".lora_" in name:
            return "adapters"
        if in_projector(name):
            return "projector"
        if id(parameter) in embeddings:
            return "embeddings"
        return "language" if id(parameter) in inside else "head" if id(parameter) in at_end else "tower"

    return part


def _multiplies(name: str, modules: Mapping[str, nn.Module], subject: Subject) -> bool:
    """Tell whether a matrix is one that features are multiplied with; blocks of a tower behind the one that is used
    are not."""
    owner, _, leaf = name.rpartition(".")
    block = BLOCK.search(name)
    tower = getattr(subject, "vision", None)
    if block and tower is not None and int(block[1]) >= _used(tower):
        return False
    tables = ("positional_embedding", "class_embedding", "position_embedding", "proj")
    return leaf not in tables and not isinstance(modules[owner], nn.Embedding)


def _used(tower: Any) -> int:
    """Return how many blocks of an open_clip tower run."""
    return len(tower.visual.transformer.resblocks) + tower.layer + 1


def _reached(chosen: Collection[str], layers: int) -> int:
    """Return how many layers lie behind the first parameter that is chosen, that parameter's own among them."""
    if any(in_projector(name) for name in chosen):
        return layers
    found = [int(match[1]) for name in chosen if (match := LAYER.search(name))]
    return layers - min(found, default=0)


def _read(modules: Mapping[str, nn.Module]) -> float:
    """Add up the widths of what adapters read; maps beside each other with equal widths (q, k, v) read the same."""
    found: dict[tuple[str, str], int] = {}
    for name, module in modules.items():
        if name.endswith(".lora_A.default"):
            owner = name.removesuffix(".lora_A.default").rpartition(".")
            kind = "mlp" if owner[2].startswith(("gate", "up")) else "attention" if owner[2][0] in "qkv" else owner[2]
            found[owner[0], kind] = int(module.in_features)  # type: ignore[arg-type]
    return float(sum(found.values()))


def _seeing(subject: Subject) -> dict[str, int]:
    """Return what is known of the tower and of what it makes of an image."""
    tower = getattr(subject, "vision", None)
    if tower is not None:
        seen = {"patches": tower.patches, "places": tower.patches}
        return {"tower_layers": _used(tower), "tower_width": tower.width, **seen}
    vision = getattr(subject.backbone.config, "vision_config", None)
    if vision is None:
        return {}
    patch = getattr(vision, "patch_size", None) or 14
    patch = patch[0] if isinstance(patch, list | tuple) else patch
    side = getattr(vision, "image_size", None)
    width, height = (side, side) if isinstance(side, int) else tuple(side) if side else PICTURE
    merged = getattr(vision, "spatial_merge_size", None) or getattr(subject.backbone.config, "scale_factor", None) or 1
    across, down = (round(length / (patch * merged)) for length in (width, height))
    layers = getattr(vision, "depth", None) or getattr(vision, "num_hidden_layers", None) or 0
    places = math.prod((across, down))
    return {
        "tower_layers": int(layers),
        "tower_width": int(getattr(vision, "hidden_size", 0)),
        "patches": int(places * merged**2),
        "places": int(places),
    }
