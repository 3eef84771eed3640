"""LDS by target file for scores that are put together over blocks as sums, scaled, by rank and by vote.

    python recipes/validate/aggregates.py LDS_RUN SCORE_RUN...    # one run of `vlmsel score` per --aggregate

LDS_RUN is a run of `vlmsel validate --study lds` on the pool and targets of the score runs; its measured losses judge
all of them. Scores by rank and vote exist for target files alone, so that a half's prediction is its samples' sum for a
file, and the measured one the file's mean loss: Spearman over halves, mean over files, with a bootstrap interval over
halves.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import yaml
from scipy.stats import spearmanr

from vlmsel import runs
from vlmsel.reporting.tables import as_markdown
from vlmsel.studies.known import Known
from vlmsel.studies.leave_out import halves

RESAMPLES = 300


def measured(lds: Path, known: Known) -> np.ndarray:
    """Return the mean loss over seeds and a file's target samples after each half. [halves, files]"""
    seeds = runs.read_json(lds / "validate.json")["losses"]
    order = sorted(seeds[0], key=lambda name: int(name.split()[-1]))
    losses = np.mean([[seed[name] for name in order] for seed in seeds], axis=0)
    return np.stack([losses[:, known.rows(file)].mean(axis=1) for file in known.files], axis=1)


def correlation(predicted: np.ndarray, losses: np.ndarray, rows: np.ndarray) -> float:
    """Return Spearman's correlation over some halves, mean over files."""
    pairs = zip(predicted[rows].T, losses[rows].T, strict=True)
    return float(np.mean([spearmanr(one, other).statistic for one, other in pairs]))


def cell(known: Known, scorer: str, losses: np.ndarray) -> str:
    """Write a scorer's LDS with its interval."""
    influence = np.stack([known.table[f"{scorer}/{file}"][known.uids] for file in known.files], axis=1)
    predicted, count = halves(len(known.uids), len(losses)) @ influence, len(losses)
    rng = np.random.default_rng(0)
    drawn = [correlation(predicted, losses, rng.integers(0, count, count)) for _ in range(RESAMPLES)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return f"{correlation(predicted, losses, np.arange(count)):+.2f} ({low:+.2f} to {high:+.2f})"


def main(lds: Path, scored: list[Path]) -> None:
    """Print the table scorer x way."""
    found = [Known(run, _pool(run)) for run in scored]
    losses = measured(lds, found[0])
    scorers = [one for one in found[0].scorers if f"{one}/{found[0].files[0]}" in found[0].table]
    rows = [[scorer, *(cell(known, scorer, losses) for known in found)] for scorer in scorers]
    print(as_markdown([["scorer", *(known.how for known in found)], *rows]))


def _pool(run: Path) -> str:
    """Return the pool that a run scored."""
    return yaml.safe_load((run / "config.yaml").read_text())["pool"]


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(one) for one in sys.argv[2:]])
