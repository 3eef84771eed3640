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

BITS = 52  # so that (k + 1/2) / 2⁵² is a float64 strictly between 0 and 1


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
        """Return scores [targets, n] for samples `uids` [n], float32."""
        uniform = [[_uniform(self.seed, target, uid) for uid in uids.tolist()] for target in targets]
        drawn = torch.special.ndtri(torch.tensor(uniform, dtype=torch.float64))
        return drawn.float().reshape(len(targets), len(uids))

    def accumulator(self, targets: Tensor, mean_square: float | None = None) -> Accumulator:
        raise ValueError("Random looks at no gradients; call draw(uids, targets)")


def _uniform(seed: int, target: str, uid: int) -> float:
    digest = hashlib.blake2b(f"{seed} {uid} {target}".encode(), digest_size=8).digest()
    return ((int.from_bytes(digest, "big") >> (64 - BITS)) + 0.5) / 2**BITS
