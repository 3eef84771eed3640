"""Scorers: frozen hyper-parameters; a gradient scorer turns target gradients v into preconditioned targets h = P v.

The influence of sample i on target t is I(i, t) = -Σ_l ⟨h_t^l, g_i^l⟩: lowest = most helpful, highest = most harmful.
"""

from vlmsel.scorers.adafactor import Adafactor
from vlmsel.scorers.base import Features, FeatureScorer, GradientScorer, Samples, SampleScorer, Scorer, Solved
from vlmsel.scorers.bm25 import BM25
from vlmsel.scorers.datainf import DataInf
from vlmsel.scorers.ekfac import EKFAC
from vlmsel.scorers.embedding import Embedding
from vlmsel.scorers.exact import Exact
from vlmsel.scorers.hidden import Hidden
from vlmsel.scorers.hyperinf import HyperINF
from vlmsel.scorers.kfac import KFAC
from vlmsel.scorers.lissa import LiSSA
from vlmsel.scorers.random import Random
from vlmsel.scorers.statistics import BlockTargets, Statistic
from vlmsel.scorers.tracin import TracIn
from vlmsel.scorers.two_sided import TwoSided

BUILT_IN: dict[str, type[Scorer]] = {
    scorer.__name__: scorer
    for scorer in (
        HyperINF,
        DataInf,
        LiSSA,
        TracIn,
        Adafactor,
        Exact,
        KFAC,
        EKFAC,
        TwoSided,
        Hidden,
        Embedding,
        BM25,
        Random,
    )  # fmt: skip
}

__all__ = [
    "BM25",
    "BUILT_IN",
    "EKFAC",
    "KFAC",
    "Adafactor",
    "BlockTargets",
    "DataInf",
    "Embedding",
    "Exact",
    "FeatureScorer",
    "Features",
    "GradientScorer",
    "Hidden",
    "HyperINF",
    "LiSSA",
    "Random",
    "SampleScorer",
    "Samples",
    "Scorer",
    "Solved",
    "Statistic",
    "TracIn",
    "TwoSided",
]
