"""Scores or affinities -> chosen samples, as functions of arrays.

Scores are influences, lowest = most helpful; affinities are the opposite, highest = most helpful.
"""

from typing import Literal

from vlmsel.selection.budget import Ask, Budget, how_many
from vlmsel.selection.by_affinity import AffinityRule, Choice
from vlmsel.selection.combine import combine_targets
from vlmsel.selection.draw import DRAWN, Draw
from vlmsel.selection.facts import Facts
from vlmsel.selection.herding import herd
from vlmsel.selection.round_robin import Taken, round_robin
from vlmsel.selection.rules import top
from vlmsel.selection.strata import strata
from vlmsel.selection.summary import describe

Rule = Literal["top", "round_robin", "herding", "strata"]

__all__ = [
    "DRAWN",
    "AffinityRule",
    "Ask",
    "Budget",
    "Choice",
    "Draw",
    "Facts",
    "Rule",
    "Taken",
    "combine_targets",
    "describe",
    "herd",
    "how_many",
    "round_robin",
    "strata",
    "top",
]
