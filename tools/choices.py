"""What the choices of a study look like beside its pool: `vlmsel demo`, and the recipes that keep seed*/selected/.

    python tools/choices.py runs/full --scores choose/score
    python tools/choices.py runs/rules --scores "rules/warmed up" --within presence

prints a Markdown table: per choice supervised tokens, loss and norm (HyperINF's) of a sample, by the score run of its
seed that `--scores` names; the percent of flawed samples (wrong answer or another image), where the pool's truth lies
beside it; and the percent that each source has. `--within` adds a source's own flawed samples, and how many of it say
yes. Means over samples, then over seeds; draws of one kind are averaged.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vlmsel.reporting.tables import as_markdown
from vlmsel.runs import read_json
from vlmsel.scoring.affinity import NAME, Affinities
from vlmsel.scoring.table import read_table
from vlmsel.studies.demo import CHOSEN
from vlmsel.studies.study import kind_of

WHOLE = "whole pool"
Measures = dict[str, np.ndarray]  # name -> values by uid, NaN where there is none


def measures(scores: Path, scorer: str, pool: Path, within: str | None) -> Measures:
    """Return what is known of every sample of a seed's pool."""
    table, _ = read_table(scores / "scores.parquet")
    size = int(table["uid"].max()) + 1
    norms = Affinities(scores / NAME).norms(scorer, size)
    found = {"tokens": table["supervised" if "supervised" in table else "tokens"], "loss": table["loss"], "norm": norms}
    found = {name: np.asarray(values, float) for name, values in found.items()}
    truth = pool.with_name(f"{pool.stem}_truth.json")
    flawed = np.array([100.0 * (one["flaw"] != "none") for one in read_json(truth)]) if truth.is_file() else None
    if flawed is not None:
        found["flawed"] = flawed
    if within is not None:
        here = table["source"] == within
        yes = np.array([100.0 * (one["conversations"][-1]["value"] == "yes") for one in read_json(pool)])
        own = {f"yes {within}": yes} | ({} if flawed is None else {f"flawed {within}": flawed})
        found |= {name: np.where(here, values, np.nan) for name, values in own.items()}
    return found | {str(name): 100.0 * (table["source"] == name) for name in np.unique(table["source"])}


def choices(seed: Path) -> Mapping[str, list[Path]]:
    """Return the manifests of a seed's choices by kind, in the order in which they were chosen."""
    found: dict[str, list[Path]] = {}
    for path in sorted(seed.glob("selected/*.manifest.json"), key=lambda path: path.stat().st_mtime_ns):
        found.setdefault(kind_of(path.name.removesuffix(".json.manifest.json")), []).append(path)
    whole = seed / "choose/chosen.json.manifest.json"
    return found | ({CHOSEN: [whole]} if whole.is_file() else {})


def rows(folder: Path, scored: Path, scores: str, scorer: str, within: str | None) -> list[list[str]]:
    """Return the table's cells, head first; the first row is the whole pool."""
    seeds = sorted(folder.glob("seed*/selected"))
    if not seeds:
        raise SystemExit(f"{folder}: no seed*/selected in it; run the study first")
    values: dict[str, dict[str, list[float]]] = {}  # choice -> measure -> a seed's mean
    for seed in (path.parent for path in seeds):
        own = choices(seed)
        if not own:
            raise SystemExit(f"{seed}: nothing was chosen there; run the study to its end")
        pool = Path(read_json(next(iter(own.values()))[0])["pool"])
        known = measures(scored / seed.name / scores, scorer, pool, within)
        for kind, paths in {WHOLE: [None], **own}.items():
            parts = [slice(None) if path is None else read_json(path)["uids"] for path in paths]
            for name, column in known.items():
                of_seeds = values.setdefault(kind, {}).setdefault(name, [])
                of_seeds.append(_mean(np.array([_mean(column[part]) for part in parts])))
    names = list(values[WHOLE])
    return [["choice", *names], *([kind, *(_shown(own[name]) for name in names)] for kind, own in values.items())]


def _shown(seeds: list[float]) -> str:
    mean = _mean(np.array(seeds))
    return "" if np.isnan(mean) else f"{mean:.3g}"


def _mean(values: np.ndarray) -> float:
    """Return the mean of those that are there, NaN of none."""
    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scores", required=True, help="the score run of a seed, by its folder in the seed's")
    parser.add_argument("--scored", type=Path, help="the study whose scores they are, where it is another")
    parser.add_argument("--scorer", default="HyperINF", help="whose norms")
    parser.add_argument("--within", help="a source to look into")
    given = parser.parse_args()
    scored = given.scored or given.folder
    print(as_markdown(rows(given.folder, scored, given.scores, given.scorer, given.within)), end="")


if __name__ == "__main__":
    main()
