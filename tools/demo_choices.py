"""What each scorer chose in `vlmsel demo`, against what is wrong with the pool.

    python tools/demo_choices.py runs/demo

prints a Markdown table: per choice the share of it that comes from each source, the share of flawed samples (wrong
answer or another image) overall and among the presence questions, and how many of these have the answer yes. Means over
seeds, in percent.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from vlmsel.data.world.files import SOURCES
from vlmsel.reporting.tables import as_markdown
from vlmsel.runs import read_json
from vlmsel.studies.demo import CHOSEN, MIXTURE, RANDOM, SCORERS, TOP
from vlmsel.studies.demo_rules import WAYS
from vlmsel.studies.study import draws_of

ARMS = (*draws_of(RANDOM, 1), *draws_of(MIXTURE, 1), TOP, *SCORERS, *WAYS, CHOSEN)


def shares(truth: Sequence[dict], pool: Sequence[dict], uids: Iterable[int]) -> list[float]:
    """Return in percent: each source, flawed samples, flawed ones among presence questions, yes among these."""
    chosen = [truth[uid] for uid in uids]
    sources = Counter(one["source"] for one in chosen)
    presence = [one for one in chosen if one["source"] == "presence"]
    flawed = [sum(one["flaw"] != "none" for one in part) / max(1, len(part)) for part in (chosen, presence)]
    yes = sum(pool[one["uid"]]["conversations"][1]["value"] == "yes" for one in presence) / max(1, len(presence))
    return [100 * value for value in [*(sources[s] / len(chosen) for s in SOURCES), *flawed, yes]]


def rows(folder: Path) -> list[list[str]]:
    """Return the table's cells, head first; the first row is the whole pool."""
    seeds = sorted(folder.glob("seed*/world/pool_truth.json"))
    if not seeds:
        raise SystemExit(f"{folder}: no seed*/world/pool_truth.json in it; run vlmsel demo first")
    table = [["choice", *SOURCES, "flawed", "flawed presence", "yes presence"]]
    for name in ("whole pool", *(name for name in ARMS if manifest(seeds[0], name).is_file())):
        found = []
        for path in seeds:
            truth, pool = read_json(path), read_json(path.with_name("pool.json"))
            uids = range(len(truth)) if name == "whole pool" else read_json(manifest(path, name))["uids"]
            found.append(shares(truth, pool, uids))
        table.append([name, *(f"{sum(column) / len(column):.0f}" for column in zip(*found, strict=True))])
    return table


def manifest(truth: Path, name: str) -> Path:
    """Return where a seed's choice says what it holds."""
    place = "choose/chosen" if name == CHOSEN else f"selected/{name}"
    return truth.parents[1] / f"{place}.json.manifest.json"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    print(as_markdown(rows(parser.parse_args().folder)), end="")
