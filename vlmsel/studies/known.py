"""What a score run says of its pool, scorer by scorer, as affinities: highest = most helpful.

Scorers with affinities say it of every single target sample. Of others there is a number per target file, the negated
influence of the score table, which counts for all samples of the file; so do three baselines that need no scorer: the
loss (highest first), the length (longest first) and the norm of the gradient (longest first), where TracIn was asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from vlmsel.scorers import Random
from vlmsel.scorers.load import load_scorers
from vlmsel.scoring.affinity import NAME, Affinities, put_together
from vlmsel.scoring.table import KNOWN, read_table
from vlmsel.selection import Facts

LOSS, LENGTH, NORM = "Loss", "Length", "gradient norm"
ROWS = 65_536  # of C that are read at once


class Known:
    """The scores of a run.

    Attributes:
        folder: the run.
        found: its affinities.
        uids: of the samples that were scored, in rising order. [n]
        files: the target files, by name.
        scorers: of whom there is anything, in the order of the table.
        aimless: those that look at no target.
        how: how the table's scores of blocks were put together.
    """

    def __init__(self, folder: Path, pool: str) -> None:
        """Open table and affinities of a run.

        Raises:
            FileNotFoundError, ValueError: one of them is missing, damaged, or of another pool.
        """
        self.folder = folder
        self.found = Affinities(folder / NAME, pool)
        self.table, self.about = read_table(folder / "scores.parquet", pool)
        self.how = put_together(self.about)
        self.aimless = {LOSS, LENGTH, NORM, *_random(self.about)}
        self.uids = self.found.uids
        self.files = list(dict.fromkeys(target["file"] for target in self.found.targets))
        named = (name.rpartition("/") for name in self.table if name not in KNOWN)
        own = dict.fromkeys(scorer for scorer, _, file in named if file in self.files)
        norm = [NORM] if "TracIn" in self.found.about["scorers"] else []
        self.scorers = [*own, *(one for one in (LOSS, LENGTH, *norm) if one not in own)]

    def asked(self, names: Sequence[str] | None) -> list[str]:
        """Return the scorers that are asked for, all when None.

        Raises:
            ValueError: one of them is not there.
        """
        for name in names or ():
            if name not in self.scorers:
                raise ValueError(f"{self.folder}: nothing is known by {name!r}; it has {', '.join(self.scorers)}")
        return list(names or self.scorers)

    @property
    def mixed(self) -> bool:
        """Whether the scored samples come from several sources."""
        return len(set(self.table["source"][self.uids].astype(str))) > 1

    def single(self, scorer: str) -> bool:
        """Tell whether a scorer knows target samples one by one; a table that is no sum over blocks knows files."""
        return scorer in self.found.about["scorers"] and self.how == "sum"

    def rows(self, file: str, among: Sequence[int] | None = None) -> list[int]:
        """Return the rows of a file's target samples, those `among` some."""
        known = range(len(self.found.targets)) if among is None else among
        return [row for row in known if self.found.targets[row]["file"] == file]

    def by_file(self, scorer: str, among: Sequence[int] | None = None) -> np.ndarray:
        """Return the mean affinity of every scored sample to each file's target samples, those `among` some. [f, n]

        Raises:
            ValueError: nothing is known of some target samples alone: the scorer knows files, or scores are no sums
                over blocks.
        """
        if among is not None and not self.single(scorer) and scorer not in self.aimless:
            why = "knows target files as a whole" if self.how == "sum" else f"is put together by {self.how}"
            raise ValueError(
                f"{self.folder}: {scorer} {why}, so that the half of a file that judges would choose too; leave it out "
                "of --scorers, or take --study lds"
            )
        if self.single(scorer):
            return -np.stack([self.found.mean_influence(scorer, self.rows(file, among)) for file in self.files])
        if scorer in (LOSS, LENGTH) and f"{scorer}/{self.files[0]}" not in self.table:
            facts = Facts.of_table(self.table)
            one = facts.values("loss" if scorer == LOSS else "length")[self.uids]
        elif scorer == NORM:
            one = self.found.norms("TracIn", len(self.table["uid"]))[self.uids]
        else:
            return -np.stack([self.table[f"{scorer}/{file}"][self.uids] for file in self.files])
        return np.repeat(one[None].astype(float), len(self.files), axis=0)

    def sums(self, scorer: str, subsets: np.ndarray) -> np.ndarray:
        """Add up the affinities of each subset's samples to every target sample. [m, n] of 0 and 1 -> [m, T]"""
        if self.single(scorer):
            total = np.zeros((len(subsets), len(self.found.targets)))
            for start in range(0, len(self.uids), ROWS):
                rows = slice(start, min(start + ROWS, len(self.uids)))
                total += subsets[:, rows] @ self.found.block(scorer, rows, unit=False).T
            return total
        by_file = subsets @ self.by_file(scorer).T
        return by_file[:, [self.files.index(target["file"]) for target in self.found.targets]]

    def mean(self, losses: Sequence[float], among: Sequence[int] | None = None) -> float:
        """Return the mean over files of target samples' losses, those `among` some."""
        return float(np.mean([np.mean([losses[row] for row in self.rows(file, among)]) for file in self.files]))


def _random(about: Mapping[str, Any]) -> list[str]:
    """Return the names of a run's scorers that draw."""
    asked = (yaml.safe_load(about["config"]) or {}).get("scorers", ())
    return [one.name for one in load_scorers(tuple(asked)) if isinstance(one, Random)]


def choosing_half(targets: Sequence[dict[str, object]], seed: int) -> list[int]:
    """Draw the rows of half of every target file, at least one; in rising order.

    Raises:
        ValueError: a file has a single sample.
    """
    rng, chosen = np.random.default_rng(seed), []
    for file in dict.fromkeys(target["file"] for target in targets):
        rows = [row for row, target in enumerate(targets) if target["file"] == file]
        if len(rows) < 2:
            raise ValueError(f"target {file}: one sample cannot be cut into halves; give more")
        chosen += rng.permutation(rows)[: len(rows) // 2].tolist()
    return sorted(chosen)
