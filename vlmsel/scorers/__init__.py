"""Scorers: frozen hyper-parameters; each turns target gradients v into preconditioned targets P v.

The influence of sample i on target t is I(i, t) = -Σ_l ⟨P_l v_t^l, g_i^l⟩: lowest = most helpful, highest = most
harmful.
"""

from vlmsel.scorers.base import Accumulator, Scorer
from vlmsel.scorers.datainf import DataInf
from vlmsel.scorers.exact import Exact
from vlmsel.scorers.hyperinf import HyperINF
from vlmsel.scorers.lissa import LiSSA
from vlmsel.scorers.random import Random
from vlmsel.scorers.tracin import TracIn
from vlmsel.scoring.arrays import score_gradients

BUILT_IN: dict[str, type[Scorer]] = {
    scorer.__name__: scorer for scorer in (HyperINF, DataInf, LiSSA, TracIn, Exact, Random)
}

__all__ = [
    "BUILT_IN",
    "Accumulator",
    "DataInf",
    "Exact",
    "HyperINF",
    "LiSSA",
    "Random",
    "Scorer",
    "TracIn",
    "score_gradients",
]
