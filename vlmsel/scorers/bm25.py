"""BM25 (Robertson & Zaragoza 2009, by bm25s): samples whose text has the rare words of a target sample's text."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import bm25s
import numpy as np
import torch
from torch import Tensor

from vlmsel.scorers.base import Features, FeatureScorer, Samples

logging.getLogger("bm25s").setLevel(logging.NOTSET)  # the root's; it sets DEBUG for itself, whatever is asked for


@dataclass(frozen=True)
class BM25(FeatureScorer):
    """Term weights of the pool's texts, and word counts of target texts; their product is the score of retrieval.

    Attributes:
        k1: how soon a word that is repeated in a text counts no more.
        b: how much long texts are held against.
        name: prefix of its columns.
    """

    k1: float = 1.5
    b: float = 0.75
    name: str = "BM25"

    def features(self, samples: Samples, targets: Samples) -> Features:
        index = bm25s.BM25(k1=self.k1, b=self.b)
        index.index(_words(samples.texts), show_progress=False)
        starts, rows = np.asarray(index.scores["indptr"]), np.asarray(index.scores["indices"])
        words = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        places = torch.from_numpy(np.stack([rows, words]).astype(np.int64))
        weights = torch.from_numpy(np.asarray(index.scores["data"], dtype=np.float32))
        shape = (len(samples.uids), max(len(starts) - 1, len(index.vocab_dict)))
        known = torch.sparse_coo_tensor(places, weights, shape, check_invariants=True).coalesce()
        return Features(known, _counts(_words(targets.texts), index.vocab_dict, shape[1]))


def _words(texts: Sequence[str]) -> list[list[str]]:
    return bm25s.tokenize(list(texts), stopwords=None, return_ids=False, show_progress=False)


def _counts(texts: Sequence[Sequence[str]], numbers: Mapping[str, int], size: int) -> Tensor:
    """Count the known words of each text. [T, words] sparse"""
    pairs = [(row, numbers[word]) for row, text in enumerate(texts) for word in text if word in numbers]
    places = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T
    return torch.sparse_coo_tensor(places, torch.ones(len(pairs)), (len(texts), size), check_invariants=True).coalesce()
