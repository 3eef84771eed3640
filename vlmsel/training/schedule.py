"""How many steps a phase has and the learning rate at each: linear warm-up, then cosine, or a line, to zero.

    rate(step) = peak · step / warmup                                          while step < warmup
               = peak · (1 + cos(pi · (step - warmup) / (steps - warmup))) / 2  afterwards (cosine)
               = peak · (steps - step) / (steps - warmup)                       afterwards (linear)

Hugging Face rounds the warm-up up, Prismatic down; both are here. Pure functions, standard library only.
"""

from __future__ import annotations

import math


def total_steps(samples: int, batch_size: int, epochs: float = 1.0, max_steps: int | None = None) -> int:
    """Return the number of optimiser steps; the last batch of an epoch may be smaller.

    >>> total_steps(665298, 128), total_steps(558128, 256), total_steps(10, 4, epochs=2.5)
    (5198, 2181, 8)

    Raises:
        ValueError: there is nothing to train on.
    """
    if samples < 1 or batch_size < 1:
        raise ValueError(f"training needs at least one sample and batch size 1, got {samples} and {batch_size}")
    return math.ceil(epochs * math.ceil(samples / batch_size)) if max_steps is None else max_steps


def warmup_steps(steps: int, ratio: float, rounding: str = "ceil") -> int:
    """Return the number of warm-up steps, rounded up (`ceil`) or down (`floor`).

    >>> [warmup_steps(steps, 0.03, way) for steps in (5198, 2181) for way in ("ceil", "floor")]
    [156, 155, 66, 65]
    """
    return math.ceil(steps * ratio) if rounding == "ceil" else math.floor(steps * ratio)


def rate_factor(step: int, steps: int, warmup: int, schedule: str = "cosine") -> float:
    """Return the learning rate after `step` optimiser steps as a part of its peak, between 0 and 1.

    >>> [rate_factor(step, 6, 2, "linear") for step in range(7)]
    [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    if step < warmup:
        return step / max(1, warmup)
    if schedule == "linear":
        return max(0.0, (steps - step) / max(1, steps - warmup))
    progress = (step - warmup) / max(1, steps - warmup)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
