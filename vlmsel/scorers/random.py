"""The baseline: independent standard normal scores, a function of (seed, target, uid) alone.

A sample's score depends neither on the batch it comes in nor on the other samples of the pool.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlmsel.scorers.base import Accumulator, Scorer


@dataclass(frozen=True)
class Random(Scorer):
    """Random scores.

    Attributes:
        seed: draws them.
        name: prefix of its columns.
    """

    seed: int = 0
    name: str = "Random"

    @property
    def uses_gradients(self) -> bool:
        return False

    def draw(self, uids: Tensor, targets: Sequence[str]) -> Tensor:
        """Return scores [targets, n] for samples `uids` [n]."""
        drawn = [[_normal(self.seed, target, uid) for uid in uids.tolist()] for target in targets]
        return torch.tensor(drawn).reshape(len(targets), len(uids))

    def accumulator(self, targets: Tensor, mean_square: float | None = None) -> Accumulator:
        raise ValueError("Random looks at no gradients; call draw(uids, targets)")


def _normal(seed: int, target: str, uid: int) -> float:
    digest = hashlib.blake2b(f"{seed} {uid} {target}".encode(), digest_size=8).digest()
    uniform = (int.from_bytes(digest, "big") + 0.5) / 2**64
    return float(torch.special.ndtri(torch.tensor(uniform, dtype=torch.float64)))
