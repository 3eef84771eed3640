"""The arms `rule scorer, model`: what every rule chooses by every scorer, at the aligned and the warmed-up model.

round_robin        turns of single target samples, by unit affinity (`vlmsel select`'s default)
herding            the choice's mean kept at the targets' mean, by unit affinity
strata             turns within each source, whose shares are half the turns' and half the pool's
top                lowest influence on each target file's mean
Loss               the samples that the model does worst, for no target
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

MODELS = ("aligned", "warmed up")
BY_MODEL = (
    *(("round_robin", scorer) for scorer in ("TracIn", "HyperINF", "Hidden")),
    *((rule, "HyperINF") for rule in ("herding", "strata")),
    *(("top", scorer) for scorer in ("TracIn", "HyperINF")),
    (None, "Loss"),
)
SCORERS = ("TracIn", "HyperINF(damping=10)", "Hidden", "BM25")


class Way(NamedTuple):
    """How a choice comes about: rule (none for a scorer that draws), scorer, and the model that scores the pool."""

    rule: str | None
    scorer: str
    model: str

    @property
    def row(self) -> str:
        """Its row in the table."""
        how = self.scorer if self.rule is None else f"{self.rule} {self.scorer}"
        return how if self.scorer == "BM25" else f"{how}, {self.model}"

    def options(self, scored: Path) -> dict[str, Any]:
        """Return the options of `vlmsel select`, for the score runs of both models in `scored`."""
        rule = {} if self.rule is None else {"rule": self.rule}
        return {"scores": str(scored / self.model), "scorer": self.scorer, **rule}


WAYS = {
    way.row: way
    for way in (
        Way("round_robin", "BM25", MODELS[0]),  # reads texts alone, so that the model does not matter
        *(Way(*how, model) for model in MODELS for how in BY_MODEL),
    )
}
