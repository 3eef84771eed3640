"""Batches: padded rows with a map from images to samples, and orders that put samples of like length together.

The attention mask is made from lengths, never from ids, so that any padding id will do, EOS too. A picture that several
samples of a batch show stands in `pixel_values` once; each of its uses is an image row of its own. Rows keep the order
of the samples, whether they have images or not.

`modality_length_order` is LLaVA's grouping of training samples (arXiv 2304.08485, group_by_modality_length). Unlike
there, one explicit generator draws everything, and text-only data are grouped by their true lengths, longest first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from vlmsel.data.encoding import IGNORED

P = TypeVar("P", bound="Padded")


@dataclass(frozen=True)
class Item:
    """One encoded sample.

    `input_ids` holds -200 where an image stands; `labels` are as long; `images` names the pictures of these places in
    order and `pixels` gives them, each [3, S, S], or their features, each [patches, width].
    """

    uid: int
    input_ids: list[int]
    labels: list[int]
    images: tuple[str, ...] = ()
    pixels: tuple[Tensor, ...] = ()


@dataclass
class Padded:
    """Samples ready for a model, padded on the right; n samples of up to t ids."""

    input_ids: Tensor  # [n, t], -200 where an image stands
    labels: Tensor  # [n, t], -100 where nothing is supervised; a classifier's [n]
    attention_mask: Tensor  # [n, t], 0 at padding
    uids: Tensor  # [n]

    shared: ClassVar[tuple[str, ...]] = ()  # fields whose rows are not the samples

    def to(self: P, device: Any, non_blocking: bool = False) -> P:
        """Copy to a device."""
        held = {name: tensor for name, tensor in vars(self).items() if tensor is not None}
        return replace(self, **{name: tensor.to(device, non_blocking=non_blocking) for name, tensor in held.items()})

    def halves(self: P) -> tuple[P, P]:
        """Cut a batch of two samples or more in two, each padded to its own longest sample."""
        rows = torch.arange(len(self.uids), device=self.uids.device)
        return self.part(rows[: len(rows) // 2]), self.part(rows[len(rows) // 2 :])

    def part(self: P, rows: Tensor) -> P:
        """Return the samples of some rows [k], padded to the longest of them."""
        longest = int(self.attention_mask[rows].sum(dim=1).max())
        own = {name: held for name, held in vars(self).items() if name not in self.shared and held is not None}
        return replace(
            self, **{name: held[rows, :longest] if held.dim() > 1 else held[rows] for name, held in own.items()}
        )


@dataclass
class Batch(Padded):
    """Samples ready for a vision-language model; r image rows, m distinct images."""

    pixel_values: Tensor | None  # [m, 3, S, S] bytes or features [m, patches, width], None without images
    image_index: Tensor  # [r] row of pixel_values
    image_samples: Tensor  # [r] row of input_ids

    shared: ClassVar[tuple[str, ...]] = ("pixel_values", "image_index", "image_samples")

    @property
    def row_samples(self) -> dict[str, Tensor]:
        """Say, by module, which sample a row belongs to where rows are not samples."""
        return {"projector": self.image_samples}

    def part(self, rows: Tensor) -> Batch:
        """Return the samples of some rows [k] with their pictures."""
        places = torch.full_like(self.uids, -1)
        places[rows] = torch.arange(len(rows), device=rows.device)
        samples = places[self.image_samples]
        shown, index = self.image_index[samples >= 0].unique(return_inverse=True)
        pixels = None if self.pixel_values is None or not len(shown) else self.pixel_values[shown]
        chosen = super().part(rows)
        return replace(chosen, pixel_values=pixels, image_index=index, image_samples=samples[samples >= 0])


def by_sample(items: Sequence[Any], pad_id: int) -> dict[str, Tensor]:
    """Return the fields that all batches make alike of their encoded samples: ids, mask and uids.

    Raises:
        ValueError: there are no samples.
    """
    if not items:
        raise ValueError("cannot make a batch of no samples")
    return {
        "input_ids": padded([item.input_ids for item in items], pad_id),
        "attention_mask": padded([[1] * len(item.input_ids) for item in items], 0),
        "uids": torch.tensor([item.uid for item in items]),
    }


def padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Fill rows up on the right to the longest of them.

    >>> padded([[5], [6, 7]], 0).tolist()
    [[5, 0], [6, 7]]
    """
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows], dtype=torch.long)


@dataclass(frozen=True)
class Collator:
    """Makes a batch of items, padded on the right with `pad_id`."""

    pad_id: int

    def __call__(self, items: Sequence[Item]) -> Batch:
        """Pad items to the longest of them.

        Raises:
            ValueError: there are no items, or an item's pictures and their names differ in number.
        """
        names, pixels, rows = _distinct_images(items)
        return Batch(
            **by_sample(items, self.pad_id),
            labels=padded([item.labels for item in items], IGNORED),
            pixel_values=torch.stack(pixels) if pixels else None,
            image_index=torch.tensor(names, dtype=torch.long),
            image_samples=torch.tensor(rows, dtype=torch.long),
        )


def _distinct_images(items: Sequence[Item]) -> tuple[list[int], list[Tensor], list[int]]:
    """Return the picture of each image row, the distinct pictures by first use, and the sample of each image row."""
    places: dict[str, int] = {}
    pixels: list[Tensor] = []
    index, rows = [], []
    for row, item in enumerate(items):
        if len(item.images) != len(item.pixels):
            raise ValueError(f"sample {item.uid} names {len(item.images)} images and holds {len(item.pixels)}")
        for name, picture in zip(item.images, item.pixels, strict=True):
            if name not in places:
                places[name] = len(pixels)
                pixels.append(picture)
            index.append(places[name])
            rows.append(row)
    return index, pixels, rows


def length_batches(
    lengths: Sequence[int],
    batch_size: int | None = None,
    max_tokens: int | None = None,
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """Cut positions into batches of like length, each position once, the longest first (so that memory fails early).

    Args:
        lengths: tokens of each sample.
        batch_size: most samples in a batch.
        max_tokens: most tokens in a batch, padding included; a longer sample is a batch of its own.
        generator: shuffles equally long samples and the order of batches; without it both follow from the lengths.

    >>> length_batches([5, 1, 4, 2], batch_size=2)
    [[0, 2], [3, 1]]
    >>> length_batches([5, 1, 4, 2, 1], max_tokens=6)
    [[0], [2], [3, 1, 4]]

    Raises:
        ValueError: neither limit is given, or one is below 1.
    """
    limits = [limit for limit in (batch_size, max_tokens) if limit is not None]
    if not limits or min(limits) < 1:
        raise ValueError(f"batch_size or max_tokens must be at least 1; got {batch_size} and {max_tokens}")
    batches: list[list[int]] = []
    for position in sorted(_shuffled(range(len(lengths)), generator), key=lambda i: lengths[i], reverse=True):
        if not batches or _full(batches[-1], lengths, batch_size, max_tokens):
            batches.append([])
        batches[-1].append(position)
    return _shuffled(batches, generator)


def _full(batch: Sequence[int], lengths: Sequence[int], batch_size: int | None, max_tokens: int | None) -> bool:
    """Whether a batch, longest sample first, has no room for one more."""
    too_many = batch_size is not None and len(batch) >= batch_size
    return too_many or (max_tokens is not None and (len(batch) + 1) * lengths[batch[0]] > max_tokens)


def _shuffled(values: Sequence[Any], generator: torch.Generator | None) -> list[Any]:
    if generator is None:
        return list(values)
    return [values[i] for i in torch.randperm(len(values), generator=generator).tolist()]


def modality_length_order(
    lengths: Sequence[int], batch_size: int, world_size: int, generator: torch.Generator
) -> list[int]:
    """Order samples so that a global batch holds one modality, dealt to the ranks by even total length.

    Samples with images and samples without are each put in random order and cut into groups of
    batch_size * world_size; a group is sorted, longest first, and dealt out by `even_chunks`. The last groups of both
    modalities make up the tail, by position; the other groups come in random order.

    Args:
        lengths: length of each sample, negative when it has no image.
        batch_size: samples per rank and optimizer step.
        world_size: number of ranks.
        generator: draws all permutations.

    Raises:
        ValueError: a length is 0, or a size is below 1.
    """
    if batch_size < 1 or world_size < 1:
        raise ValueError(f"batch_size and world_size must be at least 1; got {batch_size} and {world_size}")
    if 0 in lengths:
        raise ValueError(f"sample at position {list(lengths).index(0)} has length 0; leave it out")
    size = batch_size * world_size
    parts = [[i for i, length in enumerate(lengths) if (length > 0) == has_image] for has_image in (True, False)]
    groups = [_length_groups(part, lengths, size, world_size, generator) for part in parts if part]
    if len(groups) < 2:
        return [i for part in groups for group in part for i in group]
    body = [group for part in groups for group in part[:-1]]
    tail = sorted(i for part in groups for i in part[-1])
    return [*(i for group in _shuffled(body, generator) for i in group), *tail]


def _length_groups(
    positions: Sequence[int], lengths: Sequence[int], size: int, world_size: int, generator: torch.Generator
) -> list[list[int]]:
    """Shuffle positions, cut them into groups of `size`, sort each by length and deal it to the ranks."""
    mixed = _shuffled(positions, generator)
    groups = []
    for start in range(0, len(mixed), size):
        group = sorted(mixed[start : start + size], key=lambda i: abs(lengths[i]), reverse=True)
        groups.append([i for chunk in even_chunks(group, lengths, world_size) for i in chunk])
    return groups


def even_chunks(positions: Sequence[int], lengths: Sequence[int], chunks: int) -> list[list[int]]:
    """Deal positions to equally many places, each to the one with the least length so far that has room.

    When the number of positions is not divisible, every `chunks`-th goes to the same place instead.

    >>> even_chunks([0, 1, 2, 3], [9, 8, 7, 1], 2), even_chunks([0, 1, 2, 3, 4], [5, 4, 3, 2, 1], 2)
    ([[0, 3], [1, 2]], [[0, 2, 4], [1, 3]])
    """
    if len(positions) % chunks:
        return [list(positions[start::chunks]) for start in range(chunks)]
    room = len(positions) // chunks
    dealt: list[list[int]] = [[] for _ in range(chunks)]
    totals = [0] * chunks
    for position in positions:
        place = min((i for i in range(chunks) if len(dealt[i]) < room), key=totals.__getitem__)
        dealt[place].append(position)
        totals[place] += abs(lengths[position])
    return dealt
