"""Put patch embeddings where the image placeholders stand in the token sequence, without reordering rows.

A placeholder (id -200) makes room for all patches of its image; every other real token keeps one place; padding is
dropped and made anew on the side asked for. As LLaVA's splice it gives `text | patches | text`; unlike it there is no
loop over samples, text-only rows need no dummy image, and one row may hold several images.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

IMAGE_ID = -200
IGNORE = -100


class Plan(NamedTuple):
    """Where everything goes in the flattened spliced batch of `rows` x `length` positions."""

    rows: int
    length: int
    text_from: Tensor  # [k] positions of kept tokens in the flattened ids
    text_to: Tensor  # [k] their positions in the flattened spliced batch
    patches_to: Tensor  # [images, patches] positions of each image row's patches
    attention_mask: Tensor  # [rows, length]


def plan_splice(ids: Tensor, mask: Tensor, image_samples: Tensor, patches: int, left: bool = False) -> Plan:
    """Plan the splice of `ids` [n, t] with attention `mask` [n, t], padded on either side.

    Image row k belongs to sample row `image_samples[k]`; image rows of one sample take its placeholders from left to
    right. `left` pads the result on the left, as generation needs.

    Raises:
        ValueError: a sample has another number of placeholders than of images.
    """
    real = mask.bool()
    image = (ids == IMAGE_ID) & real
    check_counts(image.sum(dim=1), image_samples)
    size = real.long() + image.long() * (patches - 1)  # places a token takes
    start = size.cumsum(dim=1) - size
    lengths = size.sum(dim=1)
    length = int(lengths.max())
    places = torch.arange(length, device=ids.device)
    if left:
        start = start + (length - lengths)[:, None]
        attention = places >= (length - lengths)[:, None]
    else:
        attention = places < lengths[:, None]
    start = start + length * torch.arange(len(ids), device=ids.device)[:, None]
    first = torch.empty_like(image_samples)
    first[image_samples.argsort(stable=True)] = start[image]
    return Plan(
        rows=len(ids),
        length=length,
        text_from=(real & ~image).flatten().nonzero()[:, 0],
        text_to=start[real & ~image],
        patches_to=first[:, None] + torch.arange(patches, device=ids.device),
        attention_mask=attention.long(),
    )


def check_counts(placeholders: Tensor, image_samples: Tensor) -> None:
    """Refuse a batch whose samples have other numbers of placeholders [n] than of image rows."""
    images = torch.bincount(image_samples, minlength=len(placeholders))
    if images.shape == placeholders.shape and torch.equal(images, placeholders):
        return
    if images.shape != placeholders.shape:
        raise ValueError(f"image_samples names row {len(images) - 1}, the batch has {len(placeholders)} rows")
    row = int((images != placeholders).nonzero()[0, 0])
    raise ValueError(
        f"row {row} of the batch has {int(placeholders[row])} image placeholders (id {IMAGE_ID}) and "
        f"{int(images[row])} images; the two numbers must be equal (was a placeholder cut off or an image left out?)"
    )


def splice_embeddings(plan: Plan, text: Tensor, patches: Tensor | None) -> Tensor:
    """Lay text [n, t, d] and patch embeddings [images, patches, d] out as [n, length, d]; padding is zero."""
    width = text.shape[-1]
    out = text.new_zeros(plan.rows * plan.length, width)
    out = out.index_copy(0, plan.text_to, text.reshape(-1, width).index_select(0, plan.text_from))
    if patches is not None:
        out = out.index_copy(0, plan.patches_to.flatten(), patches.reshape(-1, width).to(out.dtype))
    return out.view(plan.rows, plan.length, width)


def splice_labels(plan: Plan, labels: Tensor) -> Tensor:
    """Lay labels [n, t] out as [n, length]; patches and padding get -100."""
    out = labels.new_full((plan.rows * plan.length,), IGNORE)
    out[plan.text_to] = labels.flatten()[plan.text_from]
    return out.view(plan.rows, plan.length)
