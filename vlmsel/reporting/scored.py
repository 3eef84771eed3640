"""A scored pool as a page looks at it: its table, its affinities, the choices made of it, and ranks by scorer.

Scores are influences: lowest = most helpful, so that rank 1 is the lowest. A scorer's rank over several targets is that
of the mean of its ranks by target. Affinities: highest = most helpful.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy import stats

from vlmsel.reporting.folders import Choice, Found, Run
from vlmsel.scoring.affinity import NAME, Affinities
from vlmsel.scoring.table import KNOWN, read_table

TABLE = "scores.parquet"
BLIND = ("Random",)  # scorers that nothing is to be learnt from in a gallery
ROWS = 1 << 14  # of affinities that are read at a time


@dataclass(frozen=True)
class Scored:
    """A run of score or rescore.

    Attributes:
        run: its folder.
        columns: of the score table, by name; row = uid.
        about: the table's metadata.
        choices: of this pool.
        affinities: None where there is no such file.
    """

    run: Run
    columns: Mapping[str, np.ndarray]
    about: Mapping[str, Any]
    choices: Sequence[Choice]
    affinities: Affinities | None

    @classmethod
    def open(cls, run: Run, found: Found) -> Scored:
        """Read a run folder.

        Raises:
            FileNotFoundError, ValueError: its score table is not there or damaged.
        """
        columns, about = read_table(run.folder / TABLE)
        choices = [one for one in found.choices if one.manifest.get("pool_sha256") == about["pool_sha256"]]
        path = run.folder / NAME
        return cls(run, columns, about, choices, Affinities(path) if path.is_file() else None)

    def __len__(self) -> int:
        return len(self.columns["uid"])

    @cached_property
    def sources(self) -> np.ndarray:
        """Where each sample comes from; "" for one that could not be read."""
        return self.columns["source"].astype(str)

    @cached_property
    def usable(self) -> np.ndarray:
        """Tell which samples have scores."""
        return np.isfinite(self.columns["loss"])

    @property
    def length(self) -> str:
        """The name of the column that says how long an answer is."""
        return "supervised" if "supervised" in self.columns else "tokens"

    @cached_property
    def names(self) -> list[tuple[str, str]]:
        """Scorer and target of every score column."""
        parts = [name.rpartition("/") for name in self.columns if name not in KNOWN and "/" in name]
        return [(scorer, target) for scorer, _, target in parts if not scorer.startswith("norm")]

    @property
    def scorers(self) -> list[str]:
        """The scorers, in the table's order."""
        return list(dict.fromkeys(scorer for scorer, _ in self.names))

    @property
    def targets(self) -> list[str]:
        """The target files."""
        return list(dict.fromkeys(target for _, target in self.names))

    def main(self, asked: str | None = None) -> str:
        """Return the scorer that galleries go by: the one asked for, that of a choice, or the first that looks.

        Raises:
            ValueError: the run has no such scorer.
        """
        if asked is not None and asked not in self.scorers:
            raise ValueError(f"{self.run.folder}: no scorer {asked!r}; it has {', '.join(self.scorers)}")
        chose = [choice.scorer for choice in self.choices]
        likely = [one for one in [*chose, *self.scorers] if one in self.scorers and one not in BLIND]
        return asked or (likely or self.scorers)[0]

    def scores(self, scorer: str, target: str) -> np.ndarray:
        """Return the influences of all samples, NaN where there is none. [n]"""
        return self.columns[f"{scorer}/{target}"]

    @cached_property
    def _ranks(self) -> dict[tuple[str, str | None], np.ndarray]:
        return {}

    def ranks(self, scorer: str, target: str | None = None) -> np.ndarray:
        """Return each sample's rank by a target, or by the mean of its ranks; 1 = most helpful, NaN without. [n]"""
        if (key := (scorer, target)) not in self._ranks:
            own = [self.ranks(scorer, one) for one in self.targets] if target is None else []
            self._ranks[key] = ranked(np.mean(own, axis=0) if target is None else self.scores(scorer, target))
        return self._ranks[key]

    def choice(self) -> Choice | None:
        """Return the choice that galleries show: the first that scores made; None where there is none."""
        made = [one for one in self.choices if one.scorer not in BLIND]
        return next(iter(made), None)

    def unit_affinities(self, scorer: str) -> dict[str, np.ndarray]:
        """Return each scored sample's mean unit affinity to every target file. [rows of the affinities]"""
        if self.affinities is None or scorer not in self.affinities.about["scorers"]:
            return {}
        files = [target["file"] for target in self.affinities.targets]
        directions = self.affinities.directions(scorer)
        means = {file: directions[[one == file for one in files]].mean(axis=0) for file in dict.fromkeys(files)}
        stacked = np.stack(list(means.values()))
        cuts = range(0, len(self.affinities), ROWS)
        near = [
            self.affinities.unit(scorer, slice(cut, min(cut + ROWS, len(self.affinities)))) @ stacked.T for cut in cuts
        ]
        return dict(zip(means, np.concatenate(near).T, strict=True))


def ranked(values: np.ndarray) -> np.ndarray:
    """Return ranks from 1 for the lowest, ties by their mean; NaN where there is no value.

    >>> ranked(np.array([3.0, np.nan, 1.0])).tolist()
    [2.0, nan, 1.0]
    """
    found, known = np.full(len(values), np.nan), np.isfinite(values)
    found[known] = stats.rankdata(values[known])
    return found


def open_scored(found: Found) -> list[Scored]:
    """Open the runs of score and rescore that are done."""
    return [Scored.open(run, found) for run in found.by("score", "rescore") if (run.folder / TABLE).is_file()]
