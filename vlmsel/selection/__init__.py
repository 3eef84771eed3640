"""Scores -> chosen samples, as functions of arrays. Lowest influence is most helpful, so the lowest are chosen."""

from vlmsel.selection.budget import how_many
from vlmsel.selection.combine import combine_targets
from vlmsel.selection.rules import top

__all__ = ["combine_targets", "how_many", "top"]
