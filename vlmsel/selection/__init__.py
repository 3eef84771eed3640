"""Scores -> chosen samples, as pure functions. Lowest influence is most helpful, so the lowest scores are chosen."""

from vlmsel.selection.choose import choose, combine

__all__ = ["choose", "combine"]
