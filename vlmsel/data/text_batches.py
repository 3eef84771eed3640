"""Encoded texts with their classes, and padded batches of them for a sequence classifier.

Texts longer than the model takes are cut by the tokenizer, the longer text of a pair first. Rows are padded on the
right and masked by their lengths, so that any padding id will do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlmsel.data.batches import Padded, by_sample, padded


@dataclass(frozen=True)
class Encoded:
    """One encoded sample; `token_types` is None for tokenizers that have none, `cut` tells that it was longer."""

    uid: int
    input_ids: list[int]
    token_types: list[int] | None
    label: int
    cut: bool = False


@dataclass
class TextBatch(Padded):
    """Samples ready for a classifier; labels [n] are classes."""

    token_type_ids: Tensor | None  # [n, t]

    def by_length(self, parts: int) -> tuple[Tensor, list[TextBatch]]:
        """Cut a batch into up to `parts` of like length, each padded to its own longest sample; return rows and parts.

        The longest samples come first; `rows` [n] are those of the parts, one after the other.
        """
        order = self.attention_mask.sum(dim=1).argsort(descending=True, stable=True)
        return order, [self.part(rows) for rows in order.chunk(parts)]


def encode_texts(tokenizer: Any, uid: int, texts: tuple[str, ...], label: int, limit: int) -> Encoded:
    """Tokenise a sample's texts, at most `limit` tokens of them.

    More than two texts are joined by a blank from the second on, as tokenizers take pairs at most.
    """
    pair = (texts[0], " ".join(texts[1:])) if len(texts) > 1 else texts
    found = tokenizer(*pair, verbose=False)
    cut = len(found["input_ids"]) > limit
    if cut:
        found = tokenizer(*pair, truncation=True, max_length=limit, verbose=False)
    return Encoded(uid, list(found["input_ids"]), found.get("token_type_ids"), label, cut)


@dataclass(frozen=True)
class TextCollator:
    """Makes a batch of samples, padded on the right with `pad_id`."""

    pad_id: int

    def __call__(self, items: Sequence[Encoded]) -> TextBatch:
        """Pad samples to the longest of them."""
        typed = items[0].token_types is not None
        return TextBatch(
            **by_sample(items, self.pad_id),
            token_type_ids=padded([item.token_types or [] for item in items], 0) if typed else None,
            labels=torch.tensor([item.label for item in items]),
        )
