"""The baseline: independent standard normal scores, a function of (seed, target, uid) alone.

A sample's score depends neither on the batch it comes in nor on the other samples of the pool.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vlmsel.scorers.base import Samples, SampleScorer

BITS = 52  # so that (k + 1/2) / 2⁵² is a float64 strictly between 0 and 1


@dataclass(frozen=True)
class Random(SampleScorer):
    """Random scores.

    Attributes:
        seed: draws them.
        name: prefix of its columns.
    """

    seed: int = 0
    name: str = "Random"

    def score(self, samples: Samples, targets: Mapping[str, Samples]) -> Float[Tensor, "targets n"]:
        uids = samples.uids.tolist()
        uniform = [[_uniform(self.seed, target, uid) for uid in uids] for target in targets]
        drawn = torch.special.ndtri(torch.tensor(uniform, dtype=torch.float64))
        return drawn.float().reshape(len(targets), len(uids))


def _uniform(seed: int, target: str, uid: int) -> float:
    digest = hashlib.blake2b(f"{seed} {uid} {target}".encode(), digest_size=8).digest()
    return ((int.from_bytes(digest, "big") >> (64 - BITS)) + 0.5) / 2**BITS
