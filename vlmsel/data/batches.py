"""Batches: padded rows with a map from images to samples, and orders that put samples of like length together.

The attention mask is made from lengths, never from ids, so that any padding id will do, EOS too. A picture that several
samples of a batch show stands in `pixel_values` once; each of its uses is an image row of its own. Rows keep the order
of the samples, whether they have images or not.

`modality_length_order` is LLaVA's grouping of training samples (arXiv 2304.08485, group_by_modality_length). Unlike
there, one explicit generator draws everything, and text-only data are grouped by their true lengths, longest first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from vlmsel.data.encoding import IGNORED


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
class Batch:
    """Samples ready for a vision-language model; n samples of up to t ids, r image rows, m distinct images."""

    input_ids: Tensor  # [n, t], -200 where an image stands
    labels: Tensor  # [n, t], -100 where nothing is supervised
    attention_mask: Tensor  # [n, t], 0 at padding
    pixel_values: Tensor | None  # [m, 3, S, S] bytes or features [m, patches, width], None without images
    image_index: Tensor  # [r] row of pixel_values
    image_samples: Tensor  # [r] row of input_ids
    uids: Tensor  # [n]

    @property
    def row_samples(self) -> dict[str, Tensor]:
        """Say, by module, which sample a row belongs to where rows are not samples."""
        return {"projector": self.image_samples}

    def to(self, device: Any, non_blocking: bool = False) -> Batch:
        """Copy to a device."""
        return moved(self, device, non_blocking)

    def halves(self) -> tuple[Batch, Batch]:
        """Cut a batch of two samples or more in two, each padded to its own longest sample."""
        middle = len(self.uids) // 2
        return self._part(0, middle), self._part(middle, len(self.uids))

    def _part(self, start: int, stop: int) -> Batch:
        mask = self.attention_mask[start:stop]
        columns = mask.bool().any(dim=0)
        rows = (self.image_samples >= start) & (self.image_samples < stop)
        shown, index = self.image_index[rows].unique(return_inverse=True)
        pixels = None if self.pixel_values is None or not len(shown) else self.pixel_values[shown]
        return Batch(
            input_ids=self.input_ids[start:stop, columns],
            labels=self.labels[start:stop, columns],
            attention_mask=mask[:, columns],
            pixel_values=pixels,
            image_index=index,
            image_samples=self.image_samples[rows] - start,
            uids=self.uids[start:stop],
        )


def moved(batch: Any, device: Any, non_blocking: bool = False) -> Any:
    """Copy a batch, a dataclass whose fields are tensors or None, to a device."""
    held = {field.name: getattr(batch, field.name) for field in fields(batch)}
    there = {name: tensor.to(device, non_blocking=non_blocking) for name, tensor in held.items() if tensor is not None}
    return replace(batch, **there)


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
        if not items:
            raise ValueError("cannot make a batch of no samples")
        names, pixels, rows = _distinct_images(items)
        return Batch(
            input_ids=padded([item.input_ids for item in items], self.pad_id),
            labels=padded([item.labels for item in items], IGNORED),
            attention_mask=padded([[1] * len(item.input_ids) for item in items], 0),
            pixel_values=torch.stack(pixels) if pixels else None,
            image_index=torch.tensor(names, dtype=torch.long),
            image_samples=torch.tensor(rows, dtype=torch.long),
            uids=torch.tensor([item.uid for item in items]),
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
