"""Hidden states: samples are alike where the model's last hidden states are (RDS+, arXiv 2503.01807). Forward only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import normalize

from vlmsel.scorers.base import Features, FeatureScorer, Samples


@dataclass(frozen=True)
class Hidden(FeatureScorer):
    """Position-weighted mean of a sample's last hidden states, of unit norm.

    Holds a vector per sample: 16 GB for 10⁶ samples of 4,096 float32.

    Attributes:
        centred: take the pool's mean off first, which all samples of a pool share.
        name: prefix of its columns.
    """

    centred: bool = False
    name: str = "Hidden"

    def features(self, samples: Samples, targets: Samples) -> Features:
        own, wanted = samples.look("hidden"), targets.look("hidden")
        middle = own.mean(0) if self.centred else torch.zeros_like(own[0])
        return Features(normalize(own - middle), normalize(wanted - middle))
