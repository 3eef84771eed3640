"""Embeddings: samples are alike where their pictures' features and the mean of their words' are. No language model."""

from __future__ import annotations

from dataclasses import dataclass

from torch.nn.functional import normalize

from vlmsel.scorers.base import Features, FeatureScorer, Samples


@dataclass(frozen=True)
class Embedding(FeatureScorer):
    """The vision tower's pooled features beside the mean token embedding, each of unit norm, together of unit norm.

    Attributes:
        name: prefix of its columns.
    """

    name: str = "Embedding"

    def features(self, samples: Samples, targets: Samples) -> Features:
        return Features(normalize(samples.look("embedding")), normalize(targets.look("embedding")))
