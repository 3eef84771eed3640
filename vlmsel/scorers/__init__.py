"""Scorers: frozen hyper-parameters; a gradient scorer turns target gradients v into preconditioned targets h = P v.

The influence of sample i on target t is I(i, t) = -Σ_l ⟨h_t^l, g_i^l⟩: lowest = most helpful, highest = most harmful.
"""

from vlmsel.scorers.base import GradientScorer, Samples, SampleScorer, Scorer, Solved
from vlmsel.scorers.datainf import DataInf
from vlmsel.scorers.exact import Exact
from vlmsel.scorers.hyperinf import HyperINF
from vlmsel.scorers.lissa import LiSSA
from vlmsel.scorers.random import Random
from vlmsel.scorers.statistics import BlockTargets, Statistic
from vlmsel.scorers.tracin import TracIn

BUILT_IN: dict[str, type[Scorer]] = {
    scorer.__name__: scorer for scorer in (HyperINF, DataInf, LiSSA, TracIn, Exact, Random)
}

__all__ = [
    "BUILT_IN",
    "BlockTargets",
    "DataInf",
    "Exact",
    "GradientScorer",
    "HyperINF",
    "LiSSA",
    "Random",
    "SampleScorer",
    "Samples",
    "Scorer",
    "Solved",
    "Statistic",
    "TracIn",
]
