"""Wrong labels on purpose: an exact share of the samples gets a uniformly random other class (HyperINF's and DataInf's
mislabelled-data study flips 20 %; with two classes that is the only other one).

Drawn by a stream of its own, so that a seed's flips do not follow the subset which the same seed draws.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

STREAM = 1 << 32  # added to the seed


def flip_labels(labels: Sequence[int], classes: int, share: float, seed: int) -> list[int]:
    """Give round(share · n) of the labels another class. -> [n]

    Args:
        labels: classes from 0 to `classes` - 1. [n]
        classes: how many classes there are.
        share: part of the samples, from 0 to 1.
        seed: draws which samples and which classes.

    Raises:
        ValueError: the share is not within [0, 1], or there is no other class.

    >>> sum(new != old for new, old in zip(flip_labels([0, 1, 2, 0], classes=3, share=0.5, seed=0), [0, 1, 2, 0]))
    2
    """
    if not 0 <= share <= 1:
        raise ValueError(f"flip must be a share from 0 to 1, got {share}")
    if share and classes < 2:
        raise ValueError(f"labels of {classes} class cannot be flipped; there is no other")
    generator = torch.Generator().manual_seed(seed + STREAM)
    chosen = torch.randperm(len(labels), generator=generator)[: round(share * len(labels))].tolist()
    flipped = list(labels)
    for place in chosen:
        flipped[place] = (labels[place] + int(torch.randint(1, classes, (), generator=generator))) % classes
    return flipped
