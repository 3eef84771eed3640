"""Encoded samples of a Hugging Face image-text model, and batches of them, whatever tensors its processor makes.

Tensors are of three kinds, which the processor's answer for one text with two images tells apart:

    token    [1, t, ...]    a value per token, such as token types
    sample   [1, ...]       a row per sample, such as Idefics' pictures; a sample without images gets a row of zeros
    packed   [rows, ...]    rows of all samples one after the other, such as pictures, tiles or patches

Further axes are filled up with zeros to the longest. Padding goes to the right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlmsel.data.batches import Padded, by_sample, padded
from vlmsel.data.encoding import IGNORED

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class ImageTextItem:
    """One encoded sample with what its processor made of its images, by kind and name."""

    uid: int
    input_ids: list[int]
    labels: list[int]
    token: Tensors = field(default_factory=dict)  # [t, ...]
    sample: Tensors = field(default_factory=dict)  # [...]
    packed: Tensors = field(default_factory=dict)  # [rows, ...]


@dataclass
class ImageTextBatch(Padded):
    """Samples ready for an image-text model; `owners` has the sample of each row of the packed tensors."""

    token: Tensors  # [n, t, ...]
    sample: Tensors  # [n, ...]
    packed: Tensors  # [rows, ...]
    owners: Tensors  # [rows]

    def inputs(self) -> Tensors:
        """Return what the model takes beside ids and mask."""
        return {**self.token, **self.sample, **self.packed}

    def to(self, device: Any, non_blocking: bool = False) -> ImageTextBatch:
        def move(held: Any) -> Any:
            if isinstance(held, dict):
                return {name: tensor.to(device, non_blocking=non_blocking) for name, tensor in held.items()}
            return held.to(device, non_blocking=non_blocking)

        return replace(self, **{name: move(held) for name, held in vars(self).items()})

    def part(self, rows: Tensor) -> ImageTextBatch:
        longest = int(self.attention_mask[rows].sum(dim=1).max())
        places = torch.full_like(self.uids, -1)
        places[rows] = torch.arange(len(rows), device=rows.device)
        kept = {name: places[own] >= 0 for name, own in self.owners.items()}
        packed = {name: tensor[kept[name]] for name, tensor in self.packed.items() if bool(kept[name].any())}
        seen = bool(packed) or not self.packed
        return ImageTextBatch(
            input_ids=self.input_ids[rows, :longest],
            labels=self.labels[rows, :longest],
            attention_mask=self.attention_mask[rows, :longest],
            uids=self.uids[rows],
            token={name: tensor[rows, :longest] for name, tensor in self.token.items()},
            sample={name: tensor[rows] for name, tensor in self.sample.items() if seen and bool(tensor[rows].any())},
            packed=packed,
            owners={name: places[own[kept[name]]] for name, own in self.owners.items() if name in packed},
        )


@dataclass(frozen=True)
class ImageTextCollator:
    """Makes a batch of items, padded on the right with `pad_id`."""

    pad_id: int

    def __call__(self, items: Sequence[ImageTextItem]) -> ImageTextBatch:
        """Pad items to the longest of them."""
        packed = {
            name: [item.packed[name] for item in items if name in item.packed] for name in _names(items, "packed")
        }
        return ImageTextBatch(
            **by_sample(items, self.pad_id),
            labels=padded([item.labels for item in items], IGNORED),
            token=_stacked(items, "token", lambda item: len(item.input_ids)),
            sample=_stacked(items, "sample"),
            packed={name: torch.cat(_filled(tensors, 1)) for name, tensors in packed.items()},
            owners={name: _owners(items, name) for name in packed},
        )


def _names(items: Sequence[ImageTextItem], kind: str) -> list[str]:
    return sorted({name for item in items for name in getattr(item, kind)})


def _owners(items: Sequence[ImageTextItem], name: str) -> Tensor:
    counts = torch.tensor([len(item.packed[name]) if name in item.packed else 0 for item in items])
    return torch.arange(len(items)).repeat_interleave(counts)


def _stacked(
    items: Sequence[ImageTextItem], kind: str, length: Callable[[ImageTextItem], int] | None = None
) -> Tensors:
    """Stack what samples have, zeros for those without."""
    found = {}
    for name in _names(items, kind):
        held = [getattr(item, kind).get(name) for item in items]
        like = next(tensor for tensor in held if tensor is not None)
        shapes = [like.shape if length is None else (length(item), *like.shape[1:]) for item in items]
        rows = [like.new_zeros(shape) if t is None else t for t, shape in zip(held, shapes, strict=True)]
        found[name] = torch.stack(_filled(rows, 0))
    return found


def _filled(tensors: Sequence[Tensor], first: int) -> list[Tensor]:
    """Fill tensors up with zeros to the longest on every axis from `first` on."""
    most = [max(tensor.shape[axis] for tensor in tensors) for axis in range(first, tensors[0].ndim)]
    filled = []
    for tensor in tensors:
        short = [(0, size - own) for size, own in zip(most, tensor.shape[first:], strict=True)]
        filled.append(F.pad(tensor, [end for pair in reversed(short) for end in pair]))
    return filled
